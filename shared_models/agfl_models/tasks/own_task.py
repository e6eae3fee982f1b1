"""A task of a user's own: any examples and any PyTorch module, without a tokenizer, a vocabulary or a corpus.

A user writes one class with a few methods; what federated training needs beside them is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor, nn

from agfl_models.errors import DataError
from agfl_models.examples import Row
from agfl_models.tasks import distribution
from agfl_models.tasks.config import TaskConfigBase
from agfl_models.tasks.dataset import ExampleDataset, split_rows
from agfl_models.tasks.task import MainMetric

Tensors: TypeAlias = tuple[Tensor, ...]
LOSS_SUM, EXAMPLES = "eval/loss_sum", "eval/examples"


class OwnTaskConfig(TaskConfigBase, ABC):
    """A user's task: `type: Literal[...]`, its settings, the class attributes below, and four methods.

    row: a subclass of `Row`, the columns of an owner's file; main_metric: a key of what `scores` returns, with its
    range; sums: names ("eval/...") of what `evaluate` returns, which are added over examples and over owners.
    """

    sums: ClassVar[tuple[str, ...]]

    @property
    def max_predictions(self) -> int:
        """One an example."""
        return 1

    @property
    def context_length(self) -> int:
        """An example is one position."""
        return 1

    @abstractmethod
    def collate(self, rows: Sequence[Any]) -> Tensors:
        """Return the tensors of a batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        """Return the loss of each example, (B,), for training and for evaluation."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, float]:
        """Return a batch's contribution to `sums`."""

    @abstractmethod
    def scores(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Return the metrics ("eval/...") of `sums` over owners; `sums["eval/examples"]` is how many were held out."""


@dataclass(frozen=True)
class TensorBatch:
    """The tensors of some examples."""

    tensors: Tensors

    def to(self, device: str) -> TensorBatch:
        """Return the batch on `device`."""
        return TensorBatch(tuple(tensor.to(device) for tensor in self.tensors))


class EqualDataset(ExampleDataset[Any, TensorBatch]):
    """Examples of one size, so that a batch needs no neighbors."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> TensorBatch:
        """Return `batch_size` training examples drawn with replacement."""
        return self.collate([self.train[i] for i in rng.integers(len(self.train), size=batch_size).tolist()])


@dataclass(frozen=True)
class OwnTask:
    """The `Task` that a user's configuration describes."""

    config: OwnTaskConfig
    train_sums: tuple[str, ...] = ("train/loss_sum", "train/examples")

    @property
    def main_metric(self) -> MainMetric:
        """The user's."""
        return self.config.main_metric

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """Those of the loss, the user's, and the owners' histogram."""
        return (LOSS_SUM, EXAMPLES, *self.config.sums, *distribution.BINS)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Losses, and what `scores` returns of any sums."""
        scores = self.config.scores(dict.fromkeys(self.eval_sums, 1.0))
        return ("train/loss", "eval/loss", *scores, distribution.WORST_DECILE)

    def prepare(self, rows: Sequence[Row]) -> EqualDataset:
        """Split by source; raises DataError where there is no row."""
        if not rows:
            raise DataError("AGFL-DATA-068", "data: must hold at least one example, got none")
        return self._dataset(*split_rows(rows, self.config.validation_fraction))

    def hold_out(self, rows: Sequence[Row]) -> EqualDataset:
        """Keep all rows to evaluate on."""
        return self._dataset([], rows)

    def loss(self, model: nn.Module, batch: TensorBatch) -> tuple[Tensor, int]:
        """Return (summed loss, number of examples)."""
        losses_B = self.config.loss(model, batch.tensors)
        return losses_B.float().sum(), len(losses_B)

    def evaluate(self, model: nn.Module, batch: TensorBatch) -> dict[str, float]:
        """Return the loss, the number of examples, and the user's sums."""
        loss, examples = self.loss(model, batch)
        own = self.config.evaluate(model, batch.tensors)
        return {LOSS_SUM: float(loss), EXAMPLES: float(examples), **own}

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean training loss of an example."""
        return {"train/loss": sums["train/loss_sum"] / max(sums["train/examples"], 1.0)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean loss of an example and the user's scores; nothing where no owner held an example out."""
        if sums[EXAMPLES] == 0:
            return {}
        worst = distribution.worst_decile(self.main_metric, sums)
        return {"eval/loss": sums[LOSS_SUM] / sums[EXAMPLES], **self.config.scores(sums), **worst}

    def _dataset(self, train: Sequence[Row], held_out: Sequence[Row]) -> EqualDataset:
        return EqualDataset(train, held_out, lambda rows: TensorBatch(self.config.collate(rows)), lambda row: 1)
