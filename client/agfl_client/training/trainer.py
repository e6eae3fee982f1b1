"""Local training: the global model in, a delta out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from agfl_client.training.deadline import NO_DEADLINE, Deadline
from agfl_client.training.delta_sgd import DeltaSGD
from agfl_client.training.nested_widths import NestedWidths
from agfl_models.model.sequence_model import SequenceModel, trained_parameters
from agfl_models.tasks import distribution
from agfl_models.tasks.evaluation import evaluation_sums, validation_batches
from agfl_models.tasks.task import AnyTask, BatchT, Dataset, Task
from agfl_protocol.config.optimizer_config import DeltaSGDConfig, SGDConfig
from agfl_protocol.config.run_config import TrainingConfig
from agfl_protocol.update import Layout, Vector


@dataclass(frozen=True)
class LocalResult:
    """What local training brought.

    delta: float32 (d,); loss: summed over `num_predictions` targets, in the task's unit; num_steps: of the optimizer.
    first_loss: of the model before training, on the first batch, a prediction.
    """

    delta: Vector
    loss: float
    num_predictions: int
    num_steps: int
    first_loss: float


@dataclass(frozen=True)
class LocalTrainer:
    """Trains on one owner's data as the run configuration says (client work, as in McMahan et al. 2017)."""

    config: TrainingConfig
    device: str

    def train(
        self,
        model: SequenceModel,
        layout: Layout,
        task: Task[BatchT],
        dataset: Dataset[BatchT],
        rng: np.random.Generator,
        optimizer: Optimizer | None = None,
        widths: NestedWidths | None = None,
        correction: Vector | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> LocalResult:
        """Train `model` in place; all randomness comes from `rng`. Without an optimizer to go on with, begin anew.

        widths: of an elastic model, which are trained in turn.
        correction: added to each gradient before that is clipped, so that the bound is one of the whole step, (d,).

        Raises:
            PolicyViolation: `deadline` passes.
        """
        before = layout.flatten(model)
        optimizer = optimizer or self.optimizer(model)
        model.train()
        anchor = [part.to(self.device) for part in layout.split(before)] if self.config.proximal_mu > 0 else []
        extra = [] if correction is None else [part.to(self.device) for part in layout.split(correction)]
        loss, count, steps, first_loss = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
        for batch in self._batches(dataset, rng):
            deadline.check()
            with nullcontext() if widths is None else widths.of_step(steps, rng):
                batch_loss, predictions = self._differentiate(model, task, optimizer, batch.to(self.device))
            self._step(model, optimizer, anchor, extra)
            loss, count, steps = loss + batch_loss.double().cpu(), count + predictions, steps + 1
            if steps == 1:
                first_loss = float(loss) / max(count, 1)
        return LocalResult(layout.flatten(model) - before, float(loss), count, steps, first_loss)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return a new optimizer of the configured kind."""
        config = self.config.optimizer
        if isinstance(config, SGDConfig):
            return SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
        if isinstance(config, DeltaSGDConfig):
            return DeltaSGD(model.parameters(), config.lr, config.gamma, config.delta)
        return AdamW(model.parameters(), config.lr, config.betas, weight_decay=config.weight_decay)

    def _differentiate(
        self, model: SequenceModel, task: Task[BatchT], optimizer: Optimizer, batch: BatchT
    ) -> tuple[Tensor, int]:
        with self._autocast():
            loss, predictions = task.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss / max(predictions, 1))
        return loss.detach(), predictions

    def _step(self, model: SequenceModel, optimizer: Optimizer, anchor: list[Tensor], extra: list[Tensor]) -> None:
        if anchor:
            self._pull(model, anchor)
        if extra:
            _add(model, extra)
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
        optimizer.step()

    def _pull(self, model: SequenceModel, anchor: list[Tensor]) -> None:
        """Add the gradient of mu / 2 |x - x_0|^2."""
        for parameter, start in zip(trained_parameters(model).values(), anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.config.proximal_mu)

    def _batches(self, dataset: Dataset[BatchT], rng: np.random.Generator) -> Iterator[BatchT]:
        if self.config.local_steps is not None:
            for _ in range(self.config.local_steps):
                yield dataset.sample(self.config.batch_size, rng)
        for _ in range(self.config.local_epochs or 0):
            yield from dataset.epoch(self.config.batch_size, rng)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=enabled)


def _add(model: SequenceModel, extra: list[Tensor]) -> None:
    """Add to the gradient of each parameter that has one."""
    for parameter, part in zip(trained_parameters(model).values(), extra, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(part)


def effective_steps(config: TrainingConfig, num_steps: int) -> float:
    """Return how far `num_steps` steps along one constant gradient go, in units of lr times that gradient.

    This is |a_i|_1 of FedNova (Wang et al. 2020, arXiv:2007.07481, section 4.1), which momentum makes longer and a
    proximal term shorter; an adaptive optimizer's steps count one each.
    """
    if not isinstance(config.optimizer, SGDConfig):
        return float(num_steps)
    way = velocity = 0.0
    for _ in range(num_steps):
        velocity = config.optimizer.momentum * velocity + 1 - config.optimizer.lr * config.proximal_mu * way
        way += velocity
    return way


def validation_loss(
    model: SequenceModel,
    task: AnyTask,
    dataset: Dataset[Any],
    batch_size: int,
    max_examples: int,
    device: str,
    rng: np.random.Generator | None = None,
    deadline: Deadline = NO_DEADLINE,
) -> tuple[float, int]:
    """Return (loss summed over the predictions of one owner's validation examples, their number), in float32.

    They are its first ones, or with `rng` drawn ones: the same for several models if each gets a generator of one seed.

    Raises:
        PolicyViolation: `deadline` passes.
    """
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in validation_batches(dataset, batch_size, max_examples, rng):
            deadline.check()
            loss, predictions = task.loss(model, batch.to(device))
            total, count = total + float(loss), count + predictions
    return total, count


def evaluate(
    model: SequenceModel,
    task: AnyTask,
    dataset: Dataset[Any],
    batch_size: int,
    max_examples: int,
    device: str,
    rng: np.random.Generator | None = None,
    deadline: Deadline = NO_DEADLINE,
) -> dict[str, float]:
    """Return one owner's `task.eval_sums`, as `evaluation_sums` finds them, and its place among owners.

    Raises:
        PolicyViolation: `deadline` passes.
    """
    sums = evaluation_sums(model, task, dataset, batch_size, max_examples, device, rng, deadline.check)
    return sums | distribution.one_hot(task.main_metric, task.eval_metrics(sums))
