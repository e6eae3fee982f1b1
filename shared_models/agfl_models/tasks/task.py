"""What every task provides: data, loss and metrics, where each metric is a function of sums over owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """One batch of a task.

    inputs: int64 (B, T); targets: int64 (B, T), `IGNORED` where nothing is to be predicted.
    """

    inputs: Tensor
    targets: Tensor

    def to(self, device: str) -> Batch:
        """Return the batch on `device`."""
        return Batch(self.inputs.to(device), self.targets.to(device))


class Dataset(Protocol):
    """One owner's prepared text."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """Return one training batch drawn with replacement."""
        ...

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield the training text once, in shuffled batches."""
        ...

    def validation(self, batch_size: int, max_windows: int) -> Iterator[Batch]:
        """Yield the validation text in a fixed order, at most `max_windows` sequences."""
        ...


class Task(Protocol):
    """One task: everything that training and evaluation need to know of it."""

    @property
    def train_sums(self) -> tuple[str, ...]:
        """Names of the sums that training adds to a round: summed loss, number of predictions."""
        ...

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """Names of the sums that evaluation adds to a round."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that the task reports."""
        ...

    def prepare(self, documents: Sequence[str]) -> Dataset:
        """Split an owner's documents and turn them into sequences."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return (summed loss, number of predictions) of a batch."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return one batch's contribution to `eval_sums`."""
        ...

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of summed `train_sums`."""
        ...

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of summed `eval_sums`."""
        ...
