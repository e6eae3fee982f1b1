"""A task of a user's own: any examples and any PyTorch module, without a tokenizer, a vocabulary or a corpus.

A user writes one class with a few methods; what federated training needs beside them is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agfl_models.errors import ConfigError, DataError
from agfl_models.examples import Row
from agfl_models.layers.layer import at_least_float32
from agfl_models.tasks import distribution
from agfl_models.tasks.config import TaskConfigBase
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.task import Dataset, MainMetric

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
        """Return the tensors of these rows, each with one element a row.

        It is called once with all rows that an owner trains on, and batches are taken from what it returns.
        """

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

    def only(self, places: NDArray[np.int64]) -> TensorBatch:
        """Return the examples at these places."""
        index = torch.from_numpy(places)
        return TensorBatch(tuple(tensor[index] for tensor in self.tensors))


@dataclass(frozen=True)
class EqualDataset(Dataset[TensorBatch]):
    """Examples of one size, so that a batch needs no neighbors; each is a place in tensors that are made once."""

    collate: Callable[[Sequence[Any]], Tensors]
    train: Sequence[Any]
    held_out: Sequence[Any]

    def sample(self, batch_size: int, rng: np.random.Generator) -> TensorBatch:
        """Return `batch_size` training examples drawn with replacement."""
        return self._train.only(rng.integers(len(self.train), size=batch_size))

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[TensorBatch]:
        """Yield every training example once, in random order."""
        shuffled = rng.permutation(len(self.train))
        starts = range(0, len(shuffled), batch_size)
        for i in rng.permutation(len(starts)).tolist():
            yield self._train.only(shuffled[starts[i] : starts[i] + batch_size])

    def validation(self, batch_size: int, max_examples: int) -> Iterator[TensorBatch]:
        """Yield the first `max_examples` held-out examples; nothing where nothing is held out."""
        yield from self._in_turn(np.arange(min(max_examples, len(self.held_out))), batch_size)

    def sample_validation(self, batch_size: int, num_examples: int, rng: np.random.Generator) -> Iterator[TensorBatch]:
        """Yield `num_examples` held-out examples, each drawn from all of them; nothing where nothing is held out."""
        if self.held_out:
            yield from self._in_turn(rng.integers(len(self.held_out), size=num_examples), batch_size)

    def _in_turn(self, places: NDArray[np.int64], batch_size: int) -> Iterator[TensorBatch]:
        for start in range(0, len(places), batch_size):
            yield self._held_out.only(places[start : start + batch_size])

    @cached_property
    def _train(self) -> TensorBatch:
        return self._tensors(self.train)

    @cached_property
    def _held_out(self) -> TensorBatch:
        return self._tensors(self.held_out)

    def _tensors(self, rows: Sequence[Any]) -> TensorBatch:
        tensors = self.collate(rows)
        if any(tensor.ndim == 0 or len(tensor) != len(rows) for tensor in tensors):
            # No numbers: the server gets the line, and how many rows there are is the owner's business.
            rule = "collate must return tensors with one element for each row, and has not"
            raise ConfigError("AGFL-CONFIG-295", f"task: {rule}")
        return TensorBatch(tensors)


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
        return at_least_float32(losses_B).sum(), len(losses_B)

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
        return EqualDataset(self.config.collate, train, held_out)
