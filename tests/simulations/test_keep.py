"""What a benchmark printed is kept with what it ran on, and the page of all results is made of nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import keep
import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keep, "FOLDER", tmp_path)
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    return tmp_path


def test_what_was_printed_is_kept_below_the_command_and_the_machine(folder: Path) -> None:
    (folder / "count.py").write_text("import sys\nprint('counted', sys.argv[1])\n")
    path = keep.keep("count.py", ["a b"])
    assert path == folder / "results" / "count-a-b.txt"
    command, ran, machine, empty, *printed = path.read_text().splitlines()
    assert command == "$ python simulations/benchmarks/count.py 'a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC, \d+ s, agfl \S+, commit \S+", ran)
    assert re.match(r"\d+ processors, ", machine)
    assert (empty, printed) == ("", ["counted a b"])


def test_a_command_of_ours_is_kept_as_one_types_it(folder: Path) -> None:
    path = keep.keep("agfl-simulate", ["--version"])
    assert path == folder / "results" / "agfl-simulate-version.txt"
    command, _, _, _, printed = path.read_text().splitlines()
    assert command == "$ agfl-simulate --version"
    assert re.fullmatch(r"\S+ \d+\.\d+\.\d+.*", printed)


def test_a_benchmark_that_fails_leaves_the_result_before_it(folder: Path) -> None:
    (folder / "fails.py").write_text("print('half of it')\nraise SystemExit(1)\n")
    (folder / "results").mkdir()
    (folder / "results" / "fails.txt").write_text("of before")
    with pytest.raises(subprocess.CalledProcessError):
        keep.keep("fails.py", [])
    assert (folder / "results" / "fails.txt").read_text() == "of before"


def test_the_table_of_the_documents_is_what_is_kept() -> None:
    text = keep.TABLE.read_text()
    assert f"{keep.BEGIN}\n{keep.should_i_join(keep.RESULTS)}\n{keep.END}" in text
    assert "language_modeling" in keep.should_i_join(keep.RESULTS)


def test_the_page_is_what_is_kept() -> None:
    assert keep.PAGE.read_text() == keep.page(keep.RESULTS)
    assert list(keep.RESULTS.glob("*.txt")), "something is kept"
