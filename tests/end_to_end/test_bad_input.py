"""Whatever a person gets wrong is answered in one line that names field, rule and value, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.commands import run

GOOD = """
num_rounds: 1
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 16, layers: [{type: attention, num_heads: 2}]}
training: {batch_size: 2, local_steps: 1}
aggregation: {type: plain, min_cohort: 1}
data: {partition: natural, num_owners: 2}
"""
ATTENTION = "{type: attention, num_heads: 2}"


def refused(folder: Path, *arguments: str | Path) -> str:
    """Run a command that must fail; return its one line."""
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_rounds: 1", "num_rounds: [1", ["run.yaml", "malformed YAML"]),
        ("num_rounds: 1", "num_rounds: 0", ["num_rounds", "greater than 0", "got 0"]),
        ("num_rounds: 1", "num_round: 1", ["unknown key 'num_round'", "did you mean 'num_rounds'"]),
        (ATTENTION, "{type: attentoin}", ["layers.0", "attentoin", "did you mean 'attention'"]),
        (ATTENTION, "{type: attention, num_heads: 5}", ["num_heads", "5", "16"]),
        (ATTENTION, "{type: attention, num_haeds: 2}", ["num_haeds", "did you mean 'num_heads'"]),
        ("vocab_size: 259", "vocab_size: 300", ["vocab_size", "259", "300"]),
        ("local_steps: 1", "local_steps: 1, local_epochs: 1", ["exactly one of local_steps and local_epochs"]),
    ],
)
def test_bad_configuration(config: Path, old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    config.write_text(GOOD.replace(old, new))
    line = refused(config.parent, "agfl-simulate", "run.yaml", "--output", "out")
    assert all(word in line for word in words), line
    assert not (config.parent / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["agfl-simulate", "missing.yaml"], ["missing.yaml", "no such file"]),
        (["agfl-simulate", "langage_modeling"], ["langage_modeling", "did you mean 'language_modeling'"]),
        (["agfl-simulate", "run.yaml", "--engine", "inlin"], ["--engine", "did you mean 'inline'"]),
        (["agfl-simulate", "run.yaml", "--set", "seed"], ["--set", "KEY=VALUE", "seed"]),
        (["agfl-simulate", "run.yaml", "--resume"], ["--resume", "--output"]),
        (["agfl-simulate", "run.yaml", "--resume", "--output", "none"], ["none", "checkpoint", "found none"]),
        (["agfl-simulate", "run.yaml", "--set", "data.path=empty"], ["data.path", "empty", "found none"]),
        (["agfl-simulate", "run.yaml", "--set", "data.num_owners=999"], ["data.num_owners", "608", "999"]),
        (["agfl-model", "describe", "nothing"], ["nothing"]),
        (["agfl-server", "start", "--federation", "nothing"], ["nothing"]),
        (["agfl-client", "keygen", "a/b"], ["a/b"]),
    ],
)
def test_bad_command_line(config: Path, arguments: list[str], words: list[str]) -> None:
    (config.parent / "empty").mkdir()
    line = refused(config.parent, *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["a.jsonl", "at least one row"]),
        (b'{"text": "x"}\n{"txt": "y"}\n', ["a.jsonl", "line 2", "'text'", "txt"]),
        (b'{"text": "x"\n', ["a.jsonl", "line 1", "JSON"]),
        (b'{"text": "\xff"}\n', ["a.jsonl", "UTF-8", "0xff"]),
    ],
)
def test_bad_data(config: Path, content: bytes, words: list[str]) -> None:
    owners = config.parent / "owners"
    owners.mkdir()
    (owners / "a.jsonl").write_bytes(content)
    line = refused(config.parent, "agfl-simulate", "run.yaml", "--set", "data.path=owners", "--output", "out")
    assert all(word in line for word in words), line


LIMITED = """
import resource
from agfl_sim.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main()
"""


def test_full_disk_while_checkpointing_loses_nothing(config: Path) -> None:
    """A real write error: the process may write files of 20 kB at most, the second checkpoint needs more."""
    command = ["agfl-simulate", "run.yaml", "--output", "out", "--set", "data.path=owners"]
    owners = config.parent / "owners"
    owners.mkdir()
    for name in "ab":
        (owners / f"{name}.jsonl").write_text('{"text": "To be, or not to be"}\n{"text": "that is the question"}\n')
    done = run(*command, cwd=config.parent)
    assert done.returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in (config.parent / "out" / "checkpoints").iterdir()}
    (config.parent / "limited.py").write_text(LIMITED)
    more = ("--resume", "--set", "num_rounds=2")
    assert "checkpoint" in refused(config.parent, config.parent / "limited.py", *command[1:], *more)
    after = {path.name: path.read_bytes() for path in (config.parent / "out" / "checkpoints").iterdir()}
    assert after == before


def test_checkpoint_of_another_configuration(config: Path) -> None:
    done = run("agfl-simulate", "run.yaml", "--output", "out", cwd=config.parent)
    assert done.returncode == 0, done.stderr
    line = refused(config.parent, "agfl-simulate", "run.yaml", "--output", "out", "--resume", "--set", "seed=1")
    assert "belongs to a run with another configuration: seed was " in line
    line = refused(config.parent, "agfl-simulate", "run.yaml", "--output", "out")
    assert "--resume" in line
