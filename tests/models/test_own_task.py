"""A user's own task and model: any examples, any module, no tokenizer; and what federated training cannot carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agfl_models.errors import ConfigError, DataError
from agfl_models.examples import Row, write_rows
from agfl_models.model.base_config import OwnModelConfig
from agfl_models.model.families import build_model
from agfl_models.tasks import build_task
from agfl_models.tasks.evaluation import evaluate_rows
from agfl_models.tasks.own_task import OwnTaskConfig, Tensors
from agfl_models.tasks.task import AnyTask, MainMetric
from agfl_models.tokenizers.tokenizer import BytesTokenizerConfig


class Point(Row):
    x: tuple[float, ...]
    y: float


class LineConfig(OwnTaskConfig):
    row = Point
    main_metric = MainMetric("eval/error", "error", 0.0, 10.0, higher_is_better=False)
    sums = ("eval/absolute",)
    type: Literal["line"] = "line"

    def collate(self, rows: Sequence[Point]) -> Tensors:
        return torch.tensor([row.x for row in rows]), torch.tensor([row.y for row in rows])

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        x, y = batch
        losses: Tensor = (model(x)[:, 0] - y).square()
        return losses

    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, float]:
        x, y = batch
        return {"eval/absolute": float((model(x)[:, 0] - y).abs().sum())}

    def scores(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"eval/error": sums["eval/absolute"] / sums["eval/examples"]}


class LinearConfig(OwnModelConfig):
    family: Literal["linear"] = "linear"
    layers: tuple[str, ...] = ("Linear",)

    def build(self) -> nn.Module:
        kinds: dict[str, nn.Module] = {"Linear": nn.Linear(3, 3), "BatchNorm1d": nn.BatchNorm1d(3), "ReLU": nn.ReLU()}
        return nn.Sequential(*(kinds[name] for name in self.layers))


ROWS = [Point(x=(i, 2.0 * i, 1.0), y=3.0 * i) for i in range(40)]


@pytest.fixture
def task() -> AnyTask:
    return build_task(LineConfig(), BytesTokenizerConfig(), LinearConfig())


def test_rows_of_any_fields_come_back_from_their_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "owner.jsonl", ROWS)
    rows, survey = LineConfig().read(tmp_path / "owner.jsonl")
    assert rows == ROWS
    assert survey.rows == len(ROWS)


def test_equal_rows_stand_on_one_side_and_every_row_on_one(task: AnyTask) -> None:
    dataset = task.prepare([*ROWS, *ROWS])
    train, held_out = (
        sorted(float(y) for batch in batches for y in batch.tensors[1])
        for batches in (dataset.epoch(7, np.random.default_rng(0)), dataset.validation(7, 1000))
    )
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(2 * [row.y for row in ROWS])
    assert held_out
    with pytest.raises(DataError, match=r"^data: .*AGFL-DATA-068"):
        task.prepare([])


def test_a_batch_is_drawn_from_all_training_examples_alike(task: AnyTask) -> None:
    """Their order in the file is the user's own: neighbors there are often of one label."""
    dataset: Any = task.prepare(ROWS)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([dataset.sample(4, rng).tensors[1].numpy() for _ in range(1000)])
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == len(dataset.train)
    assert counts.min() > 0.6 * 4000 / len(counts)
    spread = np.mean([np.ptp(dataset.sample(4, rng).tensors[1].numpy()) for _ in range(200)])
    assert spread > 0.4 * 120


def test_rows_become_tensors_once_and_each_batch_is_what_its_rows_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    collate, calls = LineConfig.collate, list[int]()

    def counted(self: LineConfig, rows: Sequence[Point]) -> Tensors:
        calls.append(len(rows))
        return collate(self, rows)

    monkeypatch.setattr(LineConfig, "collate", counted)
    task = build_task(LineConfig(), BytesTokenizerConfig(), LinearConfig())
    dataset: Any = task.prepare(ROWS)
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    batches = [dataset.sample(4, rng), *dataset.epoch(7, rng), *dataset.sample_validation(2, 5, rng)]
    assert calls == [len(dataset.train), len(dataset.held_out)]
    drawn = [again.integers(len(dataset.train), size=4)]
    shuffled = again.permutation(len(dataset.train))
    cuts = [shuffled[i : i + 7] for i in range(0, len(shuffled), 7)]
    drawn += [cuts[i] for i in again.permutation(len(cuts))]
    rows = [[dataset.train[i] for i in places] for places in drawn]
    held_out = [dataset.held_out[i] for i in again.integers(len(dataset.held_out), size=5)]
    rows += [held_out[i : i + 2] for i in range(0, 5, 2)]
    for batch, expected in zip(batches, rows, strict=True):
        assert all(map(torch.equal, batch.tensors, collate(LineConfig(), expected)))


def test_tensors_without_an_element_a_row_are_refused_and_the_line_counts_no_rows(
    task: AnyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LineConfig, "collate", lambda self, rows: (torch.zeros(len(rows) + 1), torch.zeros(())))
    dataset: Any = task.prepare(ROWS)
    with pytest.raises(ConfigError, match=r"^task: collate must .*AGFL-CONFIG-295") as refused:
        dataset.sample(2, np.random.default_rng(0))
    assert not any(map(str.isdigit, str(refused.value).partition("AGFL")[0]))


def test_metrics_of_all_rows_are_those_of_their_sums(task: AnyTask) -> None:
    model = build_model(LinearConfig(), seed=1)
    metrics = evaluate_rows(model, task, ROWS)
    x, y = LineConfig().collate(ROWS)
    with torch.no_grad():
        errors = (model(x)[:, 0] - y).abs()
    assert metrics["eval/error"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert metrics["eval/loss"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
    assert set(metrics) <= set(task.metrics)
    assert task.eval_metrics(dict.fromkeys(task.eval_sums, 0.0)) == {}


def test_a_module_is_drawn_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (build_model(LinearConfig(), seed=seed).state_dict()["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())
    assert LinearConfig().num_parameters() == 12


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        (
            ("Linear", "BatchNorm1d"),
            r"^model\.1: must have no running statistics, which do not travel .*BatchNorm1d.*AGFL-CONFIG-094",
        ),
        (("ReLU",), r"^model\.family: .*AGFL-CONFIG-095"),
    ],
)
def test_what_would_not_travel_is_refused_by_name(layers: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build_model(LinearConfig(layers=layers), seed=0)
