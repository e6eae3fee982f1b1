"""A command that is given a folder of ours that it does not want says what it is, and how to get at what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_client import keys
from agfl_models.errors import AgflError, CheckpointError, ConfigError, DataError, IdentityError, PretrainedError
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.files.store import load_model
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.reading.files import list_files, list_owners
from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.federation import federation_folder
from agfl_server.federation.authority import Authority
from agfl_server.rounds.checkpoint import newest_checkpoint
from agfl_server.run.run_folder import RunFolder
from agfl_sim.engines.grid import InProcessGrid


@pytest.fixture
def place(
    tmp_path: Path,
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    open_grid: Callable[..., InProcessGrid],
) -> Path:
    """One folder of each kind, in a folder with a space in its name."""
    home = tmp_path / "my work"
    home.mkdir()
    federation_folder.init(home / "fed", "", [])
    keys.generate("alice", home / "alice")
    run_federation(open_grid(make_owners(2)), run_config("num_rounds=1"), home / "run")
    shutil.copytree(home / "run", home / "unfinished")
    shutil.rmtree(home / "unfinished" / "model")
    (home / "notes").mkdir()
    (home / "notes" / "todo.txt").write_text("mine")
    return home


def line_of(open_it: Callable[[Path], object], path: Path, kind: type[AgflError]) -> str:
    with pytest.raises(kind) as caught:
        open_it(path)
    return caught.value.sentence


def test_each_kind_is_named_with_the_command_that_goes_on(place: Path) -> None:
    start = f"agfl-server start --federation '{place}/fed'"
    assert folder_hint(place / "fed") == f"; it is a federation's folder of agfl-server that has not run yet: {start}"
    assert "the authority of a federation" in folder_hint(place / "fed-ca")
    assert "an owner's keys" in folder_hint(place / "alice")
    assert folder_hint(place / "run") == f"; it is a run, and its model is in it: agfl-model describe '{place}/run'"
    assert "a run that has not finished: go on with agfl-simulate" in folder_hint(place / "unfinished")
    assert f"the checkpoints of the run in '{place}/run'" in folder_hint(place / "run" / "checkpoints")
    assert "a trained model" in folder_hint(place / "run" / "model")
    shutil.move(place / "unfinished", place / "fed" / "run")
    assert f"without a model: go on with {start} --resume" in folder_hint(place / "fed")
    assert f"a run that has not finished: go on with {start} --resume" in folder_hint(place / "fed" / "run")
    shutil.copytree(place / "run" / "model", place / "fed" / "run" / "model")
    assert f"its model is in '{place}/fed/run'" in folder_hint(place / "fed")
    for other in ("notes", "nowhere", "notes/todo.txt"):
        assert folder_hint(place / other) == ""


def test_what_wanted_another_folder_says_which_it_got(place: Path) -> None:
    assert "federation's folder of agfl-server that has not run yet" in line_of(
        load_model, place / "fed", CheckpointError
    )
    assert "an owner's keys" in line_of(load_model, place / "alice", CheckpointError)
    assert "has not finished" in line_of(load_model, place / "unfinished", CheckpointError)
    assert "an owner's keys" in line_of(federation_folder.load, place / "alice", IdentityError)
    assert "a run, and its model is in it" in line_of(federation_folder.load, place / "run", IdentityError)
    assert "a federation's folder" in line_of(keys.load, place / "fed", IdentityError)
    assert "a federation's folder" in line_of(newest_checkpoint, place / "fed" / "checkpoints", CheckpointError)
    assert line_of(load_model, place / "notes" / "todo.txt", CheckpointError).endswith("with a model, is a file")
    (place / "run" / "nodes").mkdir(exist_ok=True)  # as in a simulation
    assert "a run, and its model is in it" in line_of(federation_folder.load, place / "run", IdentityError)
    assert "a trained model" in line_of(lambda path: keys.hold(path).__enter__(), place / "run/model", IdentityError)
    assert "an owner's keys" in line_of(Authority.read, place / "alice", IdentityError)
    assert "a trained model" in line_of(list_files, place / "run" / "model", DataError)
    assert "a run, and its model is in it" in line_of(list_owners, place / "run", DataError)
    pretrained = line_of(PretrainedFolder, place / "run", PretrainedError)
    assert "a run, and its model is in it" in pretrained
    assert "an owner's keys" in line_of(
        lambda path: RunFolder(path).refuse_existing_run(), place / "alice", ConfigError
    )
    assert load_model(place / "run")[1] == load_model(place / "run" / "model")[1]
