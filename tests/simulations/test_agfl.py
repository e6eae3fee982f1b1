"""agfl is the four commands in one, completes in a shell, and keeps what is said in a file where that is wanted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tests.commands import Started, run

from agfl.cli import app
from agfl_client import keys
from agfl_client.cli import app as client
from agfl_models.cli import app as model
from agfl_server.cli import app as server

HEAVY = ("flwr", "torch", "pydantic", "cryptography", "yaml", "numpy", "httpx", "uvicorn", "grpc")
AGFL = Path(sys.executable).with_name("agfl")


def commands_of(application: typer.Typer) -> set[str]:
    return set(getattr(typer.main.get_command(application), "commands"))  # noqa: B009


def test_it_has_all_commands_of_the_four() -> None:
    parts = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    assert set(parts) == {"simulate", "server", "client", "model"}
    for name, part in (("server", server), ("client", client), ("model", model)):
        assert set(parts[name].commands) == commands_of(part)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom agfl.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print('imported:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("imported: []\n")


def test_a_command_does_the_same_by_either_name(tmp_path: Path) -> None:
    made = run("agfl", "client", "keygen", "alice", "--keys", tmp_path / "alice")
    assert (made.returncode, made.stderr) == (0, "")
    assert keys.load(tmp_path / "alice").name == "alice"
    refused = [
        run(*words, tmp_path / "nothing") for words in (("agfl", "model", "describe"), ("agfl-model", "describe"))
    ]
    assert refused[0].returncode == refused[1].returncode == 2
    assert refused[0].stderr == refused[1].stderr
    assert run("agfl", "server", "--version").stdout == run("agfl-server", "--version").stdout


@pytest.mark.parametrize(
    ("command", "words", "completed"),
    [
        ("agfl", "agfl server st", "start"),
        ("agfl", "agfl simulate --dev", "--device"),
        ("agfl-client", "agfl-client ap", "approve"),
        ("agfl-simulate", "agfl-simulate --eng", "--engine"),
    ],
)
def test_a_shell_completes_commands_and_options(command: str, words: str, completed: str) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = {**os.environ, f"_{command.upper().replace('-', '_')}_COMPLETE": "complete_bash", **asked}
    done = subprocess.run(
        [AGFL.with_name(command)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [completed]


def test_what_a_server_says_is_kept_with_its_date_until_its_last_line(tmp_path: Path) -> None:
    federation, log = tmp_path / "federation", tmp_path / "server.log"
    assert run("agfl", "server", "init", federation).returncode == 0
    for name in ("alice", "bob", "carol"):
        public_file = keys.generate(name, tmp_path / name)
        assert run("agfl-server", "add-node", name, public_file, "--federation", federation).returncode == 0
    arguments = ("start", "--federation", federation, "--port", "0", "--log-file", log)
    with Started("agfl-server", *arguments) as process:
        said = next(line for line in process.stderr if " listening on " in line)
        kept = next(line for line in log.read_text().splitlines() if " listening on " in line)
        process.kill()
    assert kept.split(" ", 3)[3] == said.rstrip("\n").split(" ", 1)[1]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} INFO ", kept)
    refused = run("agfl-server", *arguments, "--resume", "--set", "num_rounds=0")
    assert refused.returncode == 2
    assert log.read_text().splitlines()[-1].endswith(f" ERROR {refused.stderr.splitlines()[-1]}")
    assert " listening on " in log.read_text(), "it goes on in the same file"
    nowhere = run("agfl-server", "start", "--federation", federation, "--log-file", tmp_path / "none" / "log")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert str(tmp_path / "none" / "log") in nowhere.stderr


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = run("agfl-simulate", "--device", "cuda:77", "--output", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --device: must be auto, cpu, or a device of this machine, got 'cuda:77'")
    assert not (tmp_path / "out").exists()


def test_a_machine_reads_no_tables(tmp_path: Path) -> None:
    keys.generate("alice", tmp_path / "alice")
    for words in (("runs",), ("ledger",)):
        done = run("agfl-client", *words, "--keys", tmp_path / "alice", "--json")
        assert json.loads(done.stdout) == []
