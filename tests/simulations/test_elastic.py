"""One federation of unequal devices: a whole run, in which narrow and wide models are one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agfl_client.training.part import Part
from agfl_models.errors import ConfigError
from agfl_models.files.store import load_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.update import Layout
from agfl_server.rounds.observer import Observer, Row
from agfl_server.rounds.state import initial_state
from agfl_sim.engines.inline_engine import InlineEngine

ELASTIC = (
    "model.layers=[{type: attention, num_heads: 4}, {type: ff, hidden_dim: 24}, {type: rnn, cell: mingru}]",
    "elastic={widths: [0.25, 0.5, 1.0]}",
    "data.max_widths={0.25: 3, 0.5: 3, 1.0: 3}",
    "data.num_owners=9",
    "aggregation.min_cohort=3",
    "aggregation.max_colluders=1",
)


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


class Diary(Observer):
    """Keeps which widths were planned; pulls the plug when round `ends_at` has its sum but is not saved yet."""

    def __init__(self, ends_at: int = 0) -> None:
        self.ends_at = ends_at
        self.planned: list[tuple[int, list[float]]] = []

    def rings_planned(self, num_open: int, width_by_tier: Sequence[float]) -> None:
        self.planned.append((num_open, list(width_by_tier)))

    def round_finished(self, row: Row) -> None:
        if row["round"] == self.ends_at:
            raise PulledPlugError


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> np.ndarray:
    model, _ = load_model(folder)
    return Layout.of(model).flatten(model)


@pytest.fixture
def run(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Path, Diary, RunConfig]]:
    """Run the tiny elastic federation in the folder `name`."""

    def run_(name: str, *overrides: str, resume: bool = False, ends_at: int = 0) -> tuple[Path, Diary, RunConfig]:
        config, diary = run_config(*ELASTIC, *overrides), Diary(ends_at)
        InlineEngine(config, sorted(make_owners(9).iterdir())).run(tmp_path / name, resume=resume, observer=diary)
        return tmp_path / name, diary, config

    return run_


def test_each_trains_what_it_holds_and_secure_sums_change_no_bit(run: Callable[..., Any]) -> None:
    folders = {kind: run(kind, f"aggregation.type={kind}") for kind in ("plain", "secure")}
    plain, diary, config = folders["plain"]
    np.testing.assert_array_equal(weights_of(plain), weights_of(folders["secure"][0]))
    assert diary.planned == folders["secure"][1].planned == [(3, [0.25, 0.5, 1.0])]
    rows = rows_of(plain)
    assert [(row["rings/owners_2"], row["rings/owners_3"]) for row in rows] == [
        (None, None), (0, 0), (6, 3), (6, 3)
    ]  # fmt: skip
    assert rows[-1]["eval/bits_per_byte"] < rows[0]["eval/bits_per_byte"]
    assert all(row["rings/gain_2"] is not None for row in (rows[2], rows[3]))
    _, before = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "run")
    rings = config.build_rings()
    assert rings is not None
    for ring in range(3):
        assert (weights_of(plain) != before.model)[rings.ring == ring].mean() > 0.5


def test_rings_that_too_few_hold_are_not_trained(run: Callable[..., Any]) -> None:
    folder, diary, config = run("run", "aggregation.min_cohort=4", "data.max_widths={0.25: 4, 0.5: 2, 1.0: 3}")
    assert diary.planned == [(3, [0.25, 0.5, 0.5])]  # three alone would be too few, five are not
    _, before = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "run")
    rings = config.build_rings()
    assert rings is not None
    np.testing.assert_array_equal(weights_of(folder)[rings.ring == 2], before.model[rings.ring == 2])


def test_a_run_that_goes_on_ends_with_the_same_bits(run: Callable[..., Any]) -> None:
    growing = "elastic={widths: [0.25, 0.5, 1.0], growth: {patience: 1, min_gain: 0.5}}"
    often = ("evaluation.every=1", growing)
    whole, diary, _ = run("whole", "num_rounds=4", *often)
    for number in (2, 4):
        with pytest.raises(PulledPlugError):
            run("torn", "num_rounds=4", *often, resume=number > 2, ends_at=number)
    torn, *_ = run("torn", "num_rounds=4", *often, resume=True)
    np.testing.assert_array_equal(weights_of(whole), weights_of(torn))
    assert [opened for opened, _ in diary.planned][:2] == [2, 1]  # nothing gains half of the loss: closed again


def test_before_rings_are_trained_all_widths_compute_the_same(run_config: Callable[..., RunConfig]) -> None:
    config = run_config(*ELASTIC)
    _, state = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "run")
    rings, ids = config.build_rings(), torch.arange(12).reshape(1, 12)
    assert rings is not None
    outputs = []
    for num_rings in (1, 2, 3):
        part = Part.of(config, rings, num_rings, "cpu")
        part.load(state.model)
        outputs.append(part.model(ids).detach())
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    assert (outputs[0] - outputs[2]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("elastic={widths: [0.5, 0.25, 1.0]}",), "elastic.widths: must ascend to 1.0"),
        (("elastic={widths: [0.5, 0.75]}",), "elastic.widths: must ascend to 1.0"),
        (
            ("model.layers=[{type: attention, num_heads: 1}]", "elastic={widths: [0.5, 1.0]}"),
            r"elastic.widths: must make models of different size, got \[\d+, \d+\] parameters",
        ),
        (
            ("tokenizer={type: huggingface}", "model={family: huggingface, architecture: causal}", "elastic={}"),
            "elastic: needs a model made of layers, got model.family huggingface",
        ),
        (("elastic={widths: [0.5, 1.0], shrinkage: 2}",), "elastic.shrinkage: Input should be less than or equal to 1"),
    ],
)
def test_what_makes_no_nested_model_is_refused(
    run_config: Callable[..., RunConfig], overrides: tuple[str, ...], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        run_config(*overrides)


def test_there_must_be_a_device_for_each_owner(run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"^data.max_widths: must name one device an owner, 9 in all, got 4"):
        run("run", "data.max_widths={1.0: 4}")


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_methods_with_states_of_owners_are_refused(run_config: Callable[..., RunConfig], method: str) -> None:
    overrides = (f"aggregation.server_optimizer={{type: {method}}}", "aggregation.weighting=uniform")
    line = f"elastic: needs owners that keep no state, got aggregation.server_optimizer {method}"
    with pytest.raises(ConfigError, match=line):
        run_config(*ELASTIC, *overrides)
