"""The README is short, and what it shows and CI calls are the same commands."""

from __future__ import annotations

import re
import subprocess

from tests.documents import COMMANDS, ROOT, blocks, command_lines, links

README = ROOT / "README.md"
MOST_WORDS, MOST_PICTURE_BYTES = 700, 200_000


def shell_lines() -> list[str]:
    return [line for block in blocks("sh") if block.page == "README.md" for line in block.lines]


def test_it_is_short() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


def test_all_four_commands_are_shown() -> None:
    assert {line.split()[0] for page, line in command_lines() if page == "README.md"} == set(COMMANDS)


def test_it_shows_a_picture_of_a_report() -> None:
    pictures = [ROOT / link for link in links(README) if link.endswith(".png")]
    assert [picture.name for picture in pictures] == ["report.png"]
    assert all(picture.stat().st_size < MOST_PICTURE_BYTES for picture in pictures)


def test_it_leads_to_each_document_of_the_root() -> None:
    assert {"SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTICE"} <= set(links(README))


def test_it_shows_the_run_and_the_tests() -> None:
    begin = "python3 -m venv .venv && .venv/bin/pip install 'torch==2.13.0' "
    assert f"{begin}. && .venv/bin/agfl-simulate" in shell_lines()
    assert f"{begin}-e '.[test]' && .venv/bin/python -m pytest -n 3 --dist loadfile" in shell_lines()


def test_ci_calls_the_test_command_of_the_readme() -> None:
    test_command = "python -m pytest -n 3 --dist loadfile"
    assert any(line.endswith(test_command) for line in shell_lines())
    assert f"{test_command} --durations=20" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_ci_runs_what_is_numeric_once_more_without_wide_instructions() -> None:
    """All files of its list are there: bash leaves a name that it cannot expand as it is."""
    script = (ROOT / ".ci" / "run").read_text()
    assert (
        'ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE python -m pytest -n 3 --dist loadfile "${numeric[@]}"'
        in script
    )
    named = re.search(r"^numeric=\(.*?^\)", script, re.MULTILINE | re.DOTALL)
    assert named is not None
    listed = subprocess.run(
        ["bash", "-c", f'{named[0]}\nls "${{numeric[@]}}"'], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.split()) > 25
