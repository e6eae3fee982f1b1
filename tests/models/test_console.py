"""What all commands do alike, whatever surrounds the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from tests.commands import run

from agfl_models import console

PROGRAM = """
import os, sys
from agfl_models import console
app = console.new_app("test")

@app.command()
def run(path: str) -> None:
    text = sys.stdin.read()
    print(f"read {text!r}, a terminal: {sys.stdin.isatty()}")
    print("a warning", file=sys.stderr)
    with open(path, "w") as file:
        assert file.fileno() > 2, "a file of ours stands where others look for a standard stream"
        file.write("whole")

console.run_app(app)
"""


def test_windows_is_one_line_that_says_what_to_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with pytest.raises(SystemExit) as ended:
        console.run_app(lambda: pytest.fail("the command was run"))
    assert ended.value.code == console.EXIT_USER_ERROR
    line = capsys.readouterr().err
    assert line.startswith("error: Windows is not supported")
    assert line.endswith("use WSL 2 [AGFL-MACHINE-001]\n")
    assert line.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_empty_ones(tmp_path: Path, closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "whole"), done.stderr
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "read '', a terminal: False\n")
    assert done.stderr == ("" if "2>&-" in closed else "a warning\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["generate", "out", "hi", "--max-tokens", "0"],
            "Invalid value for '--max-tokens': 0 is not in the range x>=1",
        ),
        (["generate"], "Missing argument 'MODEL'"),
        (["describe", "out", "--nope"], "No such option '--nope'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], line: str) -> None:
    done = run("agfl-model", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {line}; agfl-model {arguments[0]} -h says what it takes [AGFL-USAGE-001]\n"
