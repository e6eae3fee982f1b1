"""`agfl.simulate(task=, model=)`: classes of a researcher's own, passed as objects and registered by nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor, nn

import agfl
from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.examples import Row
from agfl_models.model.base_config import FAMILIES, OwnModelConfig
from agfl_models.tasks.config import TASKS
from agfl_models.tasks.own_task import OwnTaskConfig, Tensors
from agfl_models.tasks.task import MainMetric

RUN = {
    "num_rounds": 4,
    "training": {"optimizer": {"type": "sgd", "lr": 0.1}, "batch_size": 4, "local_steps": 3},
    "evaluation": {"every": 2, "max_examples": 8},
}
OWNERS = {f"owner-{i}": [{"x": x / 10, "y": 2 * x / 10 + i} for x in range(20)] for i in range(3)}


class Point(Row):
    x: float
    y: float


class Line(OwnTaskConfig):
    row = Point
    main_metric = MainMetric("eval/error", "error", 0.0, 100.0, higher_is_better=False)
    sums = ("eval/squares",)
    type: Literal["line"] = "line"

    def collate(self, rows: Sequence[Point]) -> Tensors:
        return torch.tensor([[row.x] for row in rows]), torch.tensor([[row.y] for row in rows])

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        squares: Tensor = (model(batch[0]) - batch[1]).square().squeeze(1)
        return squares

    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, float]:
        return {"eval/squares": float(self.loss(model, batch).sum())}

    def scores(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"eval/error": sums["eval/squares"] / sums["eval/examples"]}


def family(hidden: int, name: str = "Net") -> Callable[[], OwnModelConfig]:
    """Define the class, as a cell of a notebook does whenever it runs."""

    class Net(OwnModelConfig):
        family: Literal["net"] = "net"
        width: int = hidden

        def build(self) -> nn.Module:
            return nn.Sequential(nn.Linear(1, self.width), nn.Tanh(), nn.Linear(self.width, 1))

    Net.__qualname__ = name
    return Net


class StopsAfter(agfl.Callback):
    def __init__(self, num_rows: int) -> None:
        self._left = num_rows

    def saved(self, rows: Any) -> None:
        self._left -= len(rows)
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (TASKS, FAMILIES):
        monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
        monkeypatch.setattr(registry, "_types", dict(registry._types))


def simulate(out: Path, model: Any, **more: Any) -> agfl.History:
    return agfl.simulate(RUN, task=Line(), model=model, owners=OWNERS, out=out, progress=False, **more)


def bits(history: agfl.History) -> bytes:
    return (history.model_path / "model.safetensors").read_bytes()


def test_it_trains_under_secure_sums_and_the_folder_says_what_ran(tmp_path: Path) -> None:
    history = simulate(tmp_path / "run", family(8)(), settings={"model.width": 6})
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["aggregation"]["type"] == "secure"
    assert config["model"] == {"family": "net", "width": 6}
    assert config["task"] == {"type": "line", "validation_fraction": 0.1}
    assert history.rows[-1]["clients"] == 3
    first, last = (history.rows[i]["eval/error"] for i in (0, -1))
    assert first is not None
    assert last is not None
    assert last < 0.8 * first


def test_a_run_that_goes_on_needs_no_object_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    model = family(8)()
    whole = simulate(tmp_path / "whole", model)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "run", model, callbacks=[StopsAfter(3)])
    with pytest.raises(CheckpointError, match=r"model\.width"):
        simulate(tmp_path / "run", family(9)(), resume=True)
    resumed = agfl.simulate(RUN, owners=OWNERS, out=tmp_path / "run", resume=True, progress=False)
    assert bits(resumed) == bits(whole)


def test_a_class_that_was_defined_anew_is_the_one_that_trains(tmp_path: Path) -> None:
    for hidden in (3, 5):
        history = simulate(tmp_path / str(hidden), family(hidden)(), settings={"num_rounds": 1})
        assert history.config.model.num_parameters() == 3 * hidden + 1
    with pytest.raises(ConfigError, match=r"^family: must be a new name, got 'net', .*AGFL-CONFIG-132"):
        simulate(tmp_path / "other", family(5, "Another")())


def test_what_is_no_part_of_a_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: must be a configuration or a mapping, got Linear .AGFL-CONFIG-235"):
        simulate(tmp_path / "run", nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"^Line: must derive from ModelConfigBase.*AGFL-CONFIG-130"):
        simulate(tmp_path / "run", Line())
    around: dict[str, object] = {}
    around["layers"] = around
    for content in ({"layers": {1, 2}}, around):  # a set would be read back as the text of one
        with pytest.raises(ConfigError, match=r"^model: must be plain data, which a file can hold: .*AGFL-CONFIG-275"):
            simulate(tmp_path / "run", content)
    assert not (tmp_path / "run").exists()


def test_a_part_of_a_shipped_kind_goes_in_place_of_the_configurations(tmp_path: Path) -> None:
    text = {name: [f"{name} was at sea on day {day}." for day in range(9)] for name in ("ann", "bob", "cy")}
    model = {"vocab_size": 259, "dim": 8, "layers": [{"type": "rnn"}]}
    settings = {"num_rounds": 1, "training.local_steps": 1}
    history = agfl.simulate(
        "language_modeling", model=model, owners=text, settings=settings, out=tmp_path, progress=False
    )
    assert history.config.model.num_parameters() < 9000
