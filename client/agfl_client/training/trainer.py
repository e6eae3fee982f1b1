"""Local training: the global model in, a delta out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from agfl_client.training.deadline import NO_DEADLINE, Deadline
from agfl_client.training.delta_sgd import DeltaSGD
from agfl_client.training.nested_widths import NestedWidths
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.tasks.task import BatchT, Dataset, Task
from agfl_protocol.config.training_config import DeltaSGDConfig, SGDConfig, TrainingConfig
from agfl_protocol.methods.method import Gradient
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
        model: nn.Module,
        layout: Layout,
        task: Task[BatchT],
        dataset: Dataset[BatchT],
        rng: np.random.Generator,
        optimizer: Optimizer | None = None,
        widths: NestedWidths | None = None,
        gradients: Sequence[Gradient] = (),
        deadline: Deadline = NO_DEADLINE,
    ) -> LocalResult:
        """Train `model` in place; all randomness comes from `rng`. Without an optimizer to go on with, begin anew.

        widths: of an elastic model, which are trained in turn.
        gradients: what methods make of each gradient before it is clipped, so that the bound is one of the whole step.

        Raises:
            PolicyViolation: `deadline` passes.
        """
        before = layout.flatten(model)
        optimizer = optimizer or self.optimizer(model)
        model.train()
        shaping = _Shaping.of(layout, before, self.config.proximal_mu, gradients, self.device)
        loss, count, steps, first_loss = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
        for batch in self._batches(dataset, rng):
            deadline.check()
            with nullcontext() if widths is None else widths.of_step(steps, rng):
                batch_loss, predictions = self._differentiate(model, task, optimizer, batch.to(self.device))
            self._step(model, optimizer, shaping)
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
        self, model: nn.Module, task: Task[BatchT], optimizer: Optimizer, batch: BatchT
    ) -> tuple[Tensor, int]:
        with self._autocast():
            loss, predictions = task.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss / max(predictions, 1))
        return loss.detach(), predictions

    def _step(self, model: nn.Module, optimizer: Optimizer, shaping: _Shaping) -> None:
        shaping.apply(model)
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
        optimizer.step()

    def _batches(self, dataset: Dataset[BatchT], rng: np.random.Generator) -> Iterator[BatchT]:
        if self.config.local_steps is not None:
            for _ in range(self.config.local_steps):
                yield dataset.sample(self.config.batch_size, rng)
        for _ in range(self.config.local_epochs or 0):
            yield from dataset.epoch(self.config.batch_size, rng)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=enabled)


@dataclass(frozen=True)
class _Shaping:
    """What becomes of each gradient. start: of each parameter, for a pull of strength `pull`; changes: in turn."""

    pull: float
    start: list[Tensor]
    changes: list[tuple[float, list[Tensor]]]

    @staticmethod
    def of(layout: Layout, before: Vector, proximal_mu: float, gradients: Sequence[Gradient], device: str) -> _Shaping:
        """Return it for training that begins at `before` (d,)."""

        def tensors(vector: Vector) -> list[Tensor]:
            assert vector.shape == (layout.size,), (vector.shape, layout.size)
            return [part.to(device) for part in layout.split(vector)]

        pull = proximal_mu + sum(one.pull for one in gradients)
        changes = [(one.scale, [] if one.shift is None else tensors(one.shift)) for one in gradients]
        return _Shaping(pull, tensors(before) if pull > 0 else [], changes)

    def apply(self, model: nn.Module) -> None:
        """Change the gradient of each parameter that has one."""
        parameters = list(trained_parameters(model).values())
        if self.start:  # the gradient of mu / 2 |x - x_0|^2
            for parameter, start in zip(parameters, self.start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start, alpha=self.pull)
        for scale, shift in self.changes:
            for i, parameter in enumerate(parameters):
                if parameter.grad is None:
                    continue
                if scale != 1:
                    parameter.grad.mul_(scale)
                if shift:
                    parameter.grad.add_(shift[i])


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
