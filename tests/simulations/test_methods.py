"""Each method of aggregation as a whole federation: it learns, and secure sums change no bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_protocol.run_config import RunConfig
from agfl_server.observer import Observer, Row
from agfl_sim.run import InlineEngine

METHODS = {
    "auto": ("num_rounds=5", "aggregation.server_optimizer={type: auto, every: 1}"),
    "q-ffl": ("aggregation.weighting=loss", "aggregation.fairness_q=2"),
    "fedprox": ("training.proximal_mu=0.1",),
    "delta_sgd": ("training.optimizer={type: delta_sgd}",),
    "scaffold": ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"),
    "feddyn": ("aggregation.server_optimizer={type: feddyn}", "aggregation.weighting=uniform"),
    "alignment": ("aggregation.weighting=alignment",),
    "fedexp": ("aggregation.server_optimizer={type: fedexp}",),
    # Owners of unequal text take unequal numbers of steps.
    "fednova": (
        "aggregation.averaging=normalized",
        "aggregation.max_weight=1000",
        "training.local_steps=null",
        "training.local_epochs=1",
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_method_learns_and_secure_sums_change_no_bit(
    method: str, run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    owners, weights = sorted(make_owners(4).iterdir()), {}
    for name, overrides in (("plain", METHODS[method]), ("secure", METHODS[method]), ("without", ())):
        kind = "secure" if name == "secure" else "plain"
        config = run_config(f"aggregation={{type: {kind}, server_optimizer: {{type: nesterov}}}}", *overrides)
        InlineEngine(config, owners).run(tmp_path / name, resume=False, observer=Observer())
        weights[name] = (tmp_path / name / "model" / "model.safetensors").read_bytes()
    assert weights["plain"] == weights["secure"]
    assert weights["plain"] != weights["without"]
    first, *_, last = map(json.loads, (tmp_path / "secure" / "metrics.jsonl").read_text().splitlines())
    assert last["eval/bits_per_byte"] < first["eval/bits_per_byte"]


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
