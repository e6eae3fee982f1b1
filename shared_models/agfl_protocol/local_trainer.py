"""Local training as an interface: the global model in, a delta and counts out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.config.training_config import TrainingConfig
from agfl_protocol.methods.method import Gradient
from agfl_protocol.update import Layout, Vector


class Widths(Protocol):
    """The widths of an elastic model, which are trained in turn."""

    def of_step(self, number: int, rng: np.random.Generator) -> AbstractContextManager[None]:
        """Let the model have the width of step `number`, from 0, for one gradient."""


@dataclass(frozen=True)
class LocalWork:
    """What one owner is to train in a round.

    model: with the weights of the global model, on `device`; it is trained in place, and may be used up. layout: of its
    trained parameters in the flat vector (d,). rng: all randomness comes from it; whatever needs a seed draws one from
    it. gradients: what methods make of each gradient before it is clipped, so that the bound is one of the whole step.
    widths: None where the model is not elastic. check_deadline: raises PolicyViolation once the owner's time is over.
    first_step: the number of the round's first step in the run, which `training.lr_at` takes. start: the model's
    weights as they are now, float32 (d,), not to be changed; None where a trainer that asks must make a copy.
    """

    model: nn.Module
    layout: Layout
    task: AnyTask
    dataset: Dataset[Any]
    rng: np.random.Generator
    training: TrainingConfig
    device: str = "cpu"
    gradients: Sequence[Gradient] = ()
    widths: Widths | None = None
    check_deadline: Callable[[], None] = lambda: None
    first_step: int = 0
    start: Vector | None = None

    def batches(self) -> Iterator[Any]:
        """Yield the batches of the round, on the device: as many as the run says, as long as there is time.

        What an owner approves, and what its ledger says, counts on a trainer that looks at these and no others.
        """
        training = self.training
        for _ in range(training.local_steps or 0):
            yield self._timely(self.dataset.sample(training.batch_size, self.rng))
        for _ in range(training.local_epochs or 0):
            yield from map(self._timely, self.dataset.epoch(training.batch_size, self.rng))

    def _timely(self, batch: Any) -> Any:
        self.check_deadline()
        return batch.to(self.device)


@dataclass(frozen=True)
class LocalResult:
    """What local training brought.

    delta: trained model minus global model, float32 (d,); loss: summed over `num_predictions` targets, in the task's
    unit; num_steps: of the optimizer, >= 1. first_loss: of the model before training, on the first batch, a prediction.
    Numbers that ran away may be returned as they are: such an update adds nothing to the sum.
    """

    delta: Vector
    loss: float
    num_predictions: int
    num_steps: int
    first_loss: float


class LocalTrainer(ABC):
    """What trains on an owner's machine (client work, as in McMahan et al. 2017).

    A trainer keeps nothing from round to round, leaves no file and opens no connection: what leaves the machine is the
    result, as one part of a sum. It raises nothing for what the text or the numbers are, since a refusal would tell the
    server of this owner alone.
    """

    @abstractmethod
    def train(self, work: LocalWork) -> LocalResult:
        """Train `work.model` on `work.batches()`, with the optimizer that `work.training` names."""
