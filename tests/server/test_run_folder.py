"""The folder of a run: never overwritten, always resumable from its last whole round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.files.store import load_model
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.update import Layout
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState, initial_state
from agfl_server.run.run_folder import RunFolder

MakeConfig = Callable[..., RunConfig]


def rounds_of(config: RunConfig, count: int) -> tuple[Layout, list[ServerState]]:
    """States 0..count, each with another model."""
    layout, state = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "0123abcd")
    states = [state]
    for number in range(1, count + 1):
        row: Row = {"round": number, "train/loss": 1 / number}
        model = (state.model + np.float32(number)).astype(np.float32)
        states.append(ServerState(state.run_id, number, model, state.optimizer, row))
    return layout, states


def written(path: Path, config: RunConfig, count: int) -> tuple[RunFolder, Layout, list[ServerState]]:
    """A folder of a run after `count` rounds: rows 0..count-1 are complete, as the round loop leaves them."""
    layout, states = rounds_of(config, count)
    folder = RunFolder(path)
    folder.begin(config)
    folder.save(config, states[0], [])
    for state in states[1:]:
        folder.save(config, state, [states[state.round - 1].row])
    return folder, layout, states


def rows_of(folder: RunFolder) -> list[Row]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_new_run_writes_the_resolved_configuration(tmp_path: Path, run_config: MakeConfig) -> None:
    config = run_config("data.path=/private/owners")
    folder, _, _ = written(tmp_path / "a" / "run", config, 0)
    assert load_run_config(folder.path / "config.yaml") == config


def test_existing_run_is_refused_and_untouched(tmp_path: Path, run_config: MakeConfig) -> None:
    folder, _, _ = written(tmp_path / "run", run_config(), 2)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(
        ConfigError,
        match=rf"^{folder.path}: must be a folder without a run; .*--resume, or move it away.*AGFL-CONFIG-078",
    ):
        folder.begin(run_config("seed=9"))
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_folder_that_cannot_be_written_is_named(tmp_path: Path, run_config: MakeConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^{tmp_path / 'file' / 'run'}: .*AGFL-CONFIG-081"):
        RunFolder(tmp_path / "file" / "run").begin(run_config())


@pytest.mark.parametrize("count", [0, 1, 4])
def test_resume_returns_the_last_state_and_keeps_its_rows(tmp_path: Path, run_config: MakeConfig, count: int) -> None:
    folder, _, states = written(tmp_path / "run", run_config(), count)
    rows = rows_of(folder)
    state = folder.resume(run_config())
    assert state.round == count
    assert state.model.tobytes() == states[count].model.tobytes()
    assert rows_of(folder) == rows == [json.loads(json.dumps(s.row)) for s in states[:count]]


@pytest.mark.parametrize(
    "lost",
    ['{"round": 2, "train/lo', '{"round": 2, "train/loss": 0.5}', '{"round": 2, "train/loss": 0.5}\n', "{", "\n"],
)
def test_rows_that_a_crash_left_half_done_are_dropped(tmp_path: Path, run_config: MakeConfig, lost: str) -> None:
    """A crash between the row and the checkpoint: the round runs again and writes its row again."""
    folder, _, states = written(tmp_path / "run", run_config(), 2)
    rows = rows_of(folder)
    with folder.metrics.open("a") as file:
        file.write(lost)
    state = folder.resume(run_config())
    assert rows_of(folder) == rows
    folder.save(run_config(), states[2], [state.row])
    assert [row["round"] for row in rows_of(folder)] == [0, 1, 2]


@pytest.mark.parametrize("override", ["num_rounds=100", "evaluation.every=1", "data.num_owners=2"])
def test_run_may_go_on_longer(tmp_path: Path, run_config: MakeConfig, override: str) -> None:
    folder, _, _ = written(tmp_path / "run", run_config(), 2)
    assert folder.resume(run_config(override)).round == 2
    assert load_run_config(folder.path / "config.yaml") == run_config(override)


@pytest.mark.parametrize("override", ["seed=1", "model.dim=32", "training.batch_size=3"])
def test_another_run_is_not_resumed_and_nothing_changes(tmp_path: Path, run_config: MakeConfig, override: str) -> None:
    folder, _, _ = written(tmp_path / "run", run_config(), 2)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError,
        match=rf"belongs to a run with another configuration: {override.partition('=')[0]} was .*AGFL-CHECKPOINT-016",
    ):
        folder.resume(run_config(override))
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_folder_without_a_run_is_not_resumed(tmp_path: Path, run_config: MakeConfig) -> None:
    with pytest.raises(CheckpointError, match=r"^--resume: .*checkpoints: must hold a checkpoint, found none"):
        RunFolder(tmp_path).resume(run_config())


def test_run_without_metrics_is_one_line(tmp_path: Path, run_config: MakeConfig) -> None:
    folder, _, _ = written(tmp_path / "run", run_config(), 2)
    folder.metrics.unlink()
    with pytest.raises(CheckpointError, match=r"AGFL-CHECKPOINT-003"):
        folder.resume(run_config())


def test_rows_without_a_round_are_one_line(tmp_path: Path, run_config: MakeConfig) -> None:
    folder, _, _ = written(tmp_path / "run", run_config(), 2)
    folder.metrics.write_text('{"loss": 1}\n')
    with pytest.raises(
        CheckpointError, match=rf"^metrics: {folder.metrics}: each row must say its round.*AGFL-CHECKPOINT-018"
    ):
        folder.resume(run_config())


def test_run_that_was_killed_before_its_first_checkpoint_can_start_again(
    tmp_path: Path, run_config: MakeConfig
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(run_config())
    folder.begin(run_config())
    folder.checkpoints.mkdir()
    (folder.checkpoints / ".writing-cut-short").write_bytes(b"as kill -9 leaves it")
    folder.begin(run_config())


def test_rows_that_cannot_be_written_are_one_line(tmp_path: Path, run_config: MakeConfig) -> None:
    folder, _, states = written(tmp_path / "run", run_config(), 1)
    shutil.move(folder.metrics, tmp_path / "kept")
    folder.metrics.mkdir()
    with pytest.raises(CheckpointError, match=r"^metrics: .*metrics\.jsonl: .*AGFL-CHECKPOINT-005"):
        folder.save(run_config(), states[1], [states[1].row])
    folder.metrics.rmdir()
    shutil.move(tmp_path / "kept", folder.metrics)
    assert folder.resume(run_config()).round == 1


def test_saved_model_is_the_state(tmp_path: Path, run_config: MakeConfig) -> None:
    config = run_config()
    folder, layout, states = written(tmp_path / "run", config, 1)
    folder.save_model(config, layout, states[1])
    model, saved = load_model(folder.path)
    assert layout.flatten(model).tobytes() == states[1].model.tobytes()
    assert saved.task == config.task
    assert saved.model.resolve() == config.model.resolve()
    assert saved.widths is None


def test_saved_model_says_in_which_widths_it_was_trained(tmp_path: Path, run_config: MakeConfig) -> None:
    config = run_config("elastic.widths=[0.5, 1.0]")
    folder, layout, states = written(tmp_path / "run", config, 1)
    folder.save_model(config, layout, states[1])
    assert load_model(folder.path)[1].widths == (0.5, 1.0)


@pytest.mark.parametrize("name", ["config.yaml", "report.html", "model/config.yaml", "checkpoints/mine"])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path, run_config: MakeConfig, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    taken = name.partition("/")[0]
    line = rf"^{tmp_path}/out: .* holds a {taken} .*AGFL-CONFIG-079"
    with pytest.raises(ConfigError, match=line):
        RunFolder(tmp_path / "out").begin(run_config())
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_other_files_beside_a_run_stay(tmp_path: Path, run_config: MakeConfig) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text("mine")
    RunFolder(tmp_path / "out").begin(run_config())
    assert (tmp_path / "out" / "log.txt").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path: Path, run_config: MakeConfig) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=rf"^{tmp_path / 'run'}: .*AGFL-CONFIG-077"):
        RunFolder(tmp_path / "run").begin(run_config())


def test_a_run_that_ended_before_its_first_round_may_begin_again(tmp_path: Path, run_config: MakeConfig) -> None:
    RunFolder(tmp_path / "run").begin(run_config())
    RunFolder(tmp_path / "run").begin(run_config("seed=9"))
    assert load_run_config(tmp_path / "run" / "config.yaml").seed == 9
