"""A run that was interrupted anywhere and resumed ends with the bits of one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.observer import Observer, Row
from agfl_sim.engines.grid import InProcessGrid

ROUNDS = 4
OVERRIDES = (
    f"num_rounds={ROUNDS}",
    "aggregation.cohort_size=2",
    "aggregation.server_optimizer={type: fedadam}",
    "training.local_steps=1",
    "training.schedule={type: cosine, steps: 5, warmup_steps: 2}",
)


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


@dataclass
class Interrupter(Observer):
    """Ends the run at an event of a round."""

    event: str
    number: int

    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        self._now("round_started", round_number)
        self._round = round_number

    def replied(self, name: str) -> None:
        self._now("replied", self._round)

    def round_finished(self, row: Row) -> None:
        self._now("round_finished", row["round"])

    def evaluated(self, row: Row) -> None:
        self._now("evaluated", row["round"])

    def _now(self, event: str, number: int | float | None) -> None:
        if (event, number) == (self.event, self.number):
            raise PulledPlugError


@dataclass
class Runs:
    """Runs the tiny federation, each time with new nodes."""

    config: Callable[..., RunConfig]
    owners: Path
    grid: Callable[..., InProcessGrid]

    def run(self, folder: Path, *overrides: str, resume: bool = False, observer: Observer | None = None) -> None:
        config = self.config(*OVERRIDES, *overrides)
        run_federation(self.grid(self.owners), config, folder, resume=resume, observer=observer)

    def interrupt(self, folder: Path, event: str, number: int, *, resume: bool = False) -> None:
        with pytest.raises(PulledPlugError):
            self.run(folder, resume=resume, observer=Interrupter(event, number))


@pytest.fixture
def runs(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], open_grid: Callable[..., InProcessGrid]
) -> Runs:
    return Runs(run_config, make_owners(3), open_grid)


def result(folder: Path, config: RunConfig) -> tuple[dict[str, bytes], list[dict[str, Any]], object]:
    """All that a run leaves, but for its own name and how long it took."""
    state = load_checkpoint(folder / "checkpoints", config.hash)
    own = {f"{method}.{name}": value for method, kept in state.methods.items() for name, value in kept.items()}
    arrays: dict[str, NDArray[Any]] = {"model": state.model, **own, **state.optimizer}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = {name: (folder / name).read_bytes() for name in ("model/model.safetensors", "model/config.yaml")}
    return (
        {**files, **{name: array.tobytes() for name, array in arrays.items()}},
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        (state.round, state.norm),
    )


EVENTS = [
    *(("round_started", number) for number in range(1, ROUNDS + 2)),  # after each round; the last is the evaluation
    *(("round_finished", number) for number in (1, 3, ROUNDS)),  # before it is saved
    *(("replied", number) for number in (1, 4)),  # in the midst of a sum
    ("evaluated", 2),
    ("evaluated", ROUNDS),
]


def test_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(runs: Runs, tmp_path: Path) -> None:
    runs.run(tmp_path / "whole")
    config = runs.config(*OVERRIDES)
    whole = result(tmp_path / "whole", config)
    assert [row["round"] for row in whole[1]] == list(range(ROUNDS + 1))
    for event, number in EVENTS:
        folder = tmp_path / f"{event}-{number}"
        runs.interrupt(folder, event, number)
        runs.run(folder, resume=True)
        assert result(folder, config) == whole, (event, number)


def test_run_that_is_interrupted_again_and_again_ends_with_the_same_bits(runs: Runs, tmp_path: Path) -> None:
    runs.run(tmp_path / "whole")
    runs.interrupt(tmp_path / "torn", "round_finished", 1)
    for number in range(2, ROUNDS + 2):
        runs.interrupt(tmp_path / "torn", "round_started", number, resume=True)
    runs.run(tmp_path / "torn", resume=True)
    config = runs.config(*OVERRIDES)
    assert result(tmp_path / "torn", config) == result(tmp_path / "whole", config)


def test_run_that_goes_on_longer_keeps_what_it_has_and_goes_on_the_same_way_each_time(
    runs: Runs, tmp_path: Path
) -> None:
    """It is not the run that was longer from the start: its first end took an exchange, for the last evaluation."""
    longer, short, found = "num_rounds=9", runs.config(*OVERRIDES), []
    for name in ("one", "other"):
        runs.run(tmp_path / name)
        before = result(tmp_path / name, short)
        runs.run(tmp_path / name, longer, resume=True)
        found.append(result(tmp_path / name, runs.config(*OVERRIDES, longer)))
        assert found[-1][1][: ROUNDS + 1] == before[1], "no row changes"
        assert [row["round"] for row in found[-1][1]] == list(range(10))
    assert found[0] == found[1]
    for event, number in (("replied", 8), ("evaluated", 9)):
        runs.run(tmp_path / event)
        with pytest.raises(PulledPlugError):
            runs.run(tmp_path / event, longer, resume=True, observer=Interrupter(event, number))
        runs.run(tmp_path / event, longer, resume=True)
        assert result(tmp_path / event, runs.config(*OVERRIDES, longer)) == found[0]


def test_fewer_rounds_than_are_done_are_refused_and_nothing_changes(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.run(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        ConfigError, match=rf"^num_rounds: must be at least {ROUNDS}, the rounds done, got 2.*AGFL-CONFIG-080"
    ):
        runs.run(folder, "num_rounds=2", resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_finished_run_that_is_resumed_stays_as_it_is(runs: Runs, tmp_path: Path) -> None:
    runs.run(tmp_path / "run")
    config = runs.config(*OVERRIDES)
    before = result(tmp_path / "run", config)
    runs.run(tmp_path / "run", resume=True)
    assert result(tmp_path / "run", config) == before
