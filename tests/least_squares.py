"""A linear model in float64 and its least squares, small enough to train by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.config.training_config import TrainingConfig
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.update import Layout

DIM = 3


@dataclass(frozen=True)
class Points:
    """Rows of x (B, 3) and y (B,), of which those with `counts` (B,) are predictions."""

    x: Tensor
    y: Tensor
    counts: Tensor

    def to(self, device: str) -> Points:
        return self


class LeastSquares:
    """What training asks of a task."""

    def loss(self, model: nn.Module, batch: Points) -> tuple[Tensor, int]:
        errors = (model(batch.x).squeeze(1) - batch.y).square()
        return (errors * batch.counts).sum(), int(batch.counts.sum())


class Data:
    """What training asks of a dataset; about a third of the rows are no predictions."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> Points:
        x = torch.from_numpy(rng.normal(size=(batch_size, DIM)))
        counts = torch.from_numpy(rng.random(batch_size) < 2 / 3)
        return Points(x, x.sum(1) + torch.from_numpy(rng.normal(size=batch_size)), counts)

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Points]:
        yield self.sample(batch_size, rng)


def zero_model() -> nn.Module:
    model = nn.Linear(DIM, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    return model


def work(model: nn.Module, seed: int = 0, first_step: int = 0, **training: Any) -> LocalWork:
    """A round's work on new data; training: the fields of its configuration."""
    config = TrainingConfig.model_validate({"max_grad_norm": None, **training})
    task, data = cast("AnyTask", LeastSquares()), cast("Dataset[Any]", Data())
    rng = np.random.default_rng(seed)
    return LocalWork(model, Layout.of(model), task, data, rng, config, first_step=first_step)
