"""What every task provides: data, loss and metrics, where each metric is a function of sums over owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor, nn

from agfl_models.errors import BrokenRule
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import AnyModelConfig
from agfl_models.model.heads import Family

IGNORED = -100  # PyTorch's default ignore_index: a target that is not to be predicted


@dataclass(frozen=True)
class MainMetric:
    """The metric that a person looks at first.

    name: key of `Task.metrics`; title: what people call it; low, high: its range, in which owners are compared.
    """

    name: str
    title: str
    low: float
    high: float
    higher_is_better: bool


class Batch(Protocol):
    """One batch of a task; `batch_rows` tells what it is made of, so that a device may take some rows at a time."""

    def to(self, device: str) -> Self:
        """Return the batch on `device`."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)


class Dataset(Protocol[BatchT_co]):
    """One owner's prepared examples."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> BatchT_co:
        """Return one training batch drawn with replacement."""
        ...

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[BatchT_co]:
        """Yield the training examples once, in shuffled batches."""
        ...

    def validation(self, batch_size: int, max_examples: int) -> Iterator[BatchT_co]:
        """Yield the validation examples in a fixed order, at most `max_examples`."""
        ...

    def sample_validation(self, batch_size: int, num_examples: int, rng: np.random.Generator) -> Iterator[BatchT_co]:
        """Yield exactly `num_examples` validation examples drawn with replacement; none where none are held out."""
        ...


class Task(Protocol[BatchT]):
    """One task: everything that training and evaluation need to know of it."""

    @property
    def main_metric(self) -> MainMetric:
        """The metric that a person looks at first."""
        ...

    @property
    def train_sums(self) -> tuple[str, ...]:
        """Names of the sums that training adds to a round: summed loss, number of predictions."""
        ...

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """Names of the sums that evaluation adds to a round, `distribution.BINS` among them."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that the task reports."""
        ...

    def prepare(self, rows: Sequence[Any]) -> Dataset[BatchT]:
        """Split an owner's rows, of the task's own class, and turn them into examples."""
        ...

    def hold_out(self, rows: Sequence[Any]) -> Dataset[BatchT]:
        """Turn all rows into examples to evaluate on, and none to train on."""
        ...

    def loss(self, model: nn.Module, batch: BatchT) -> tuple[Tensor, int]:
        """Return (summed loss, number of predictions) of a batch."""
        ...

    def evaluate(self, model: nn.Module, batch: BatchT) -> dict[str, float]:
        """Return one batch's contribution to `eval_sums`."""
        ...

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of summed `train_sums`."""
        ...

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of summed `eval_sums`; what cannot be said is left out."""
        ...


AnyTask: TypeAlias = Task[Any]


@runtime_checkable
class SplitLoss(Protocol):
    """A task whose `loss` is in two parts, since what it counts is of the batch alone.

    Targets are `targets` or `labels` of the batch; a row whose targets are all `IGNORED` adds nothing to the loss.
    """

    def summed_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the summed loss of a batch, by PyTorch's operations alone."""
        ...

    def num_predictions(self, batch: Any) -> int:
        """Return the number of predictions of a batch."""
        ...


def check_kind(model: AnyModelConfig, task: str, kind: Family, head: str) -> None:
    """Raise BrokenRule unless `model` is of the kind and has the head that `task` needs."""
    resolved = model.resolve()
    if not isinstance(resolved, ModelConfig | HuggingFaceConfig):
        raise BrokenRule(
            "AGFL-CONFIG-125", f"model.family: must be a model of text for task {task}, got {model.family}"
        )
    if resolved.kind != kind:
        (key, wanted), (_, got) = resolved.written(kind), resolved.written(resolved.kind)
        raise BrokenRule("AGFL-CONFIG-126", f"model.{key} must be {wanted} for task {task}, got {got}")
    if resolved.head is None or resolved.head.type != head:
        got = "none" if resolved.head is None else resolved.head.type
        raise BrokenRule("AGFL-CONFIG-127", f"model.head must be {head} for task {task}, got {got}")
