"""`auto` as a whole federation: it goes on with the same choices, and says what it chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer, Row
from agfl_sim.engines.inline_engine import InlineEngine


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


class Interrupter(Observer):
    def __init__(self, ends_at: int) -> None:
        self.ends_at = ends_at

    def round_finished(self, row: Row) -> None:
        if row["round"] == self.ends_at:
            raise PulledPlugError


def test_a_run_that_goes_on_ends_with_the_same_choices(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    owners, auto = sorted(make_owners(3).iterdir()), "aggregation.server_optimizer={type: auto, every: 2}"
    config = run_config("num_rounds=6", "training.optimizer.lr=0.05", auto)
    InlineEngine(config, owners).run(tmp_path / "whole", resume=False, observer=Observer())
    for ends_at in (1, 3, 5):
        with pytest.raises(PulledPlugError):
            InlineEngine(config, owners).run(tmp_path / "torn", resume=ends_at > 1, observer=Interrupter(ends_at))
    InlineEngine(config, owners).run(tmp_path / "torn", resume=True, observer=Observer())
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "torn")]
    assert models[0] == models[1]


def test_a_person_is_told_when_the_method_changes(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    """With a client learning rate this small every longer step is the better one."""

    class Diary(Observer):
        def __init__(self) -> None:
            self.chosen: list[str] = []

        def optimizer_chosen(self, method: str) -> None:
            self.chosen.append(method)

    arms = "[{type: fedavg, lr: 0.01}, {type: fedavg, lr: 1}, {type: fedavg, lr: 30}]"
    auto, diary = f"aggregation.server_optimizer={{type: auto, every: 1, arms: {arms}}}", Diary()
    config = run_config("num_rounds=4", "training.optimizer.lr=0.01", auto)
    InlineEngine(config, sorted(make_owners(3).iterdir())).run(tmp_path / "run", resume=False, observer=diary)
    assert diary.chosen == ["fedavg lr 30"]
