"""agfl-server as a person calls it."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.commands import Started, run

from agfl_client import keys
from agfl_protocol.identity.fingerprint import words_of_file
from agfl_protocol.identity.roster_file import read_roster
from agfl_server.run.settings import read_settings
from agfl_server.run.sittings import read_sittings

HEAVY = ("flwr", "torch", "pydantic", "cryptography", "yaml", "numpy", "httpx", "uvicorn", "grpc")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("agfl-server", *arguments)


@pytest.mark.parametrize("command", [[], ["init"], ["add-node"], ["start"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    program = (
        "import sys\nfrom agfl_server.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        f"print('imported:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", program, *command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert "Usage" in result.stdout
    assert result.stdout.endswith("imported: []\n")


def test_a_federation_is_made_filled_and_started(tmp_path: Path, free_port: int) -> None:
    folder = tmp_path / "federation"
    made = _run("init", str(folder), "--host", "fed.example.org")
    assert (made.returncode, made.stderr) == (0, "")
    assert words_of_file(folder / "ca.pem") in made.stdout
    assert f"move {folder}-ca to where nobody who takes over this machine finds it" in made.stdout
    (tmp_path / "federation-ca").rename(tmp_path / "elsewhere")
    (folder / "ca.key").touch()  # where older versions put it
    for name in ("alice", "bob", "carol"):
        public_file = keys.generate(name, tmp_path / name)
        admitted = _run("add-node", name, str(public_file), "--federation", str(folder))
    assert admitted.stdout.startswith(f"admitted carol; nodes of {folder}: alice, bob, carol\n")
    assert admitted.stdout.endswith(f":\n{words_of_file(public_file)}\n")
    roster = _run("roster", str(tmp_path / "roster.yaml"), "--federation", str(folder))
    words = words_of_file(tmp_path / "roster.yaml")
    assert roster.stdout.startswith(f"3 owners in {tmp_path / 'roster.yaml'}, in words:\n{words}\n")

    options = ("--federation", folder, "--port", str(free_port), "--set", "baselines=true")
    with Started("agfl-server", "start", *options) as process:
        try:
            lines = iter(process.stderr)
            assert next(lines).endswith(f" {folder / 'ca.key'}: move it off this machine; the server runs without it\n")
            assert " baselines: left out, since nobody here has the text of all owners; " in next(lines)
            assert next(lines).endswith(f" listening on 127.0.0.1 port {free_port}; admitted: alice, bob, carol\n")
            assert next(lines).endswith(f" roster of 3 owners, in words: {words}\n")
            assert " waiting for nodes: 0 of " in next(lines)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 130
            rest = process.stderr.read()
            again = f"agfl-server start --federation {folder} --host 127.0.0.1 --port {free_port} --resume"
            assert f"stopped by a signal; go on with: {again}\n" in rest
            assert read_settings(folder / "run") == ["baselines=true"]
            assert [one.outcome for one in read_sittings(folder / "run")] == ["interrupted"]
            assert "Traceback" not in rest
        finally:
            process.kill()
    socket.create_server(("127.0.0.1", free_port)).close()


def test_the_start_says_what_the_configuration_left_open(tmp_path: Path, free_port: int) -> None:
    folder, config = tmp_path / "federation", tmp_path / "run.yaml"
    model = "{vocab_size: 259, dim: 8, layers: [{type: ff}]}"
    config.write_text(f"num_rounds: 1\ntask: {{type: language_modeling}}\nmodel: {model}\n")
    assert _run("init", str(folder), "--config", str(config)).returncode == 0
    with Started("agfl-server", "start", "--federation", folder, "--port", str(free_port)) as process:
        before = list(itertools.takewhile(lambda line: " listening on " not in line, process.stderr))
        process.kill()
    said = "".join(before)
    settings = ("training.optimizer ", "training.local_steps ", "aggregation.server_optimizer ")
    assert all(setting in said for setting in settings), said
    assert "{type: auto}" in said


def test_init_takes_a_configuration_and_checks_it(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("num_rounds: many\n")
    result = _run("init", str(tmp_path / "federation"), "--config", str(config))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {config}: ")
    assert not (tmp_path / "federation").exists()


CHOICE = "[{type: choice, name: mixer, of: [[{type: ff}], [{type: ff}]]}]"
MANY = "[" + ", ".join(f"{{type: choice, name: c{i}, of: [[{{type: ff}}], [{{type: rnn}}]]}}" for i in range(5)) + "]"


@pytest.mark.parametrize(
    ("layers", "search", "rule"),
    [
        ("[{type: rnn}, {type: ff}]", "{slate: [configured, nobody]}", "search.slate: unknown candidate 'nobody'"),
        (CHOICE, "{slate: [configured, mixer2]}", "search.slate: must leave two candidates, got configured; "),
        (MANY, "{}", "model.layers: choices must make at most 16 candidates, got 32"),
    ],
)
def test_init_refuses_a_search_that_no_start_would_take(tmp_path: Path, layers: str, search: str, rule: str) -> None:
    config = tmp_path / "run.yaml"
    model = f"model: {{vocab_size: 259, dim: 8, layers: {layers}}}\n"
    config.write_text(f"num_rounds: 4\ntask: {{type: language_modeling}}\n{model}search: {search}\n")
    result = _run("init", str(tmp_path / "federation"), "--config", str(config))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: {rule}")
    assert not (tmp_path / "federation").exists()


def test_roster_replaces_a_roster_and_nothing_else(tmp_path: Path) -> None:
    folder, roster, notes = tmp_path / "federation", tmp_path / "roster.yaml", tmp_path / "notes.yaml"
    assert _run("init", str(folder)).returncode == 0
    empty = _run("roster", str(roster), "--federation", str(folder))
    assert empty.stderr == "error: roster: must hold at least one owner, no node is admitted yet [AGFL-IDENTITY-021]\n"
    assert not roster.exists()
    for number, name in enumerate(("alice", "bob"), start=1):
        _run("add-node", name, str(keys.generate(name, tmp_path / name)), "--federation", str(folder))
        assert _run("roster", str(roster), "--federation", str(folder)).returncode == 0
        assert len(read_roster(roster)) == number
    notes.write_text("version: 1\n7: x\n")
    for path, rule in (
        (notes, "must be a new file or a roster, since nothing else is replaced; "),
        (folder, "must be a new file or a roster, since nothing else is replaced; "),
        (tmp_path / "none" / "roster.yaml", "cannot be written: No such file or directory"),
    ):
        result = _run("roster", str(path), "--federation", str(folder))
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"error: {path}: {rule}")
    assert notes.read_text() == "version: 1\n7: x\n"


def test_errors_are_one_line(tmp_path: Path) -> None:
    result = _run("start", "--federation", str(tmp_path / "nowhere"))
    line = "must be a federation folder made by `agfl-server init`, got none [AGFL-IDENTITY-059]"
    expected = f"error: {tmp_path / 'nowhere'}: {line}\n"
    assert (result.returncode, result.stderr) == (2, expected)
