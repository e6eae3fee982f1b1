"""Local training: the shipped loop, a step for each batch, or the one that a run names, whose result is checked."""

from __future__ import annotations

import logging
import operator
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agfl_client.training.deadline import OutOfTime
from agfl_client.training.optimizers.local_optimizer import new_optimizer
from agfl_models.errors import ConfigError
from agfl_models.machine import make_room
from agfl_models.model.blocks import blocks_of, recomputed
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.tasks.batch_rows import MicroBatch
from agfl_protocol.config.training_config import SGDConfig, TrainingConfig
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork
from agfl_protocol.methods.method import Gradient
from agfl_protocol.update import Layout, Vector

log = logging.getLogger("agfl.client")
_MAX_STEPS, _MAX_PREDICTIONS = 1_000_000, 2**53


@dataclass(frozen=True)
class BatchTrainer(LocalTrainer):
    """The shipped trainer, which serves every run: a step for each batch.

    optimizer: to go on with; None begins anew. total: makes (loss, predictions) of what this process has of a batch
    those of all of it; None where it has all. micro_batch: with which to begin; it is made to take less where memory is
    too small, but not where several processes must take the same steps.
    """

    optimizer: Optimizer | None = None
    total: Callable[[Tensor, int], tuple[Tensor, int]] | None = None
    micro_batch: MicroBatch = field(default_factory=MicroBatch)

    def train(self, work: LocalWork) -> LocalResult:
        """Train `work.model` in place.

        Raises:
            PolicyViolation: the deadline passes.
            ConfigError: the device has too little memory, even for one row at a time.
        """
        try:
            return self._train(work)
        except torch.OutOfMemoryError:
            work.model.zero_grad(set_to_none=True)
            # The server gets the line, so it does not say how much there is.
            rule = "must have the memory to train this model on one row at a time, and has not"
            raise ConfigError("AGFL-CONFIG-262", f"--device: {rule}") from None

    def _train(self, work: LocalWork) -> LocalResult:
        before = work.layout.flatten(work.model) if work.start is None else work.start
        optimizer = self.optimizer or new_optimizer(work.training, work.model)
        work.model.train()
        shaping = _Shaping.of(work.layout, before, work.training.proximal_mu, work.gradients, work.device)
        loss, count, steps, first_loss = torch.zeros((), dtype=torch.float64), 0, 0, 0.0
        for batch in work.batches():
            with nullcontext() if work.widths is None else work.widths.of_step(steps, work.rng):
                batch_loss, predictions = self._differentiate(work, optimizer, batch)
            self._step(work, optimizer, shaping, work.training.lr_at(work.first_step + steps))
            loss, count, steps = loss + batch_loss.double().cpu(), count + predictions, steps + 1
            if steps == 1:
                first_loss = float(loss) / max(count, 1)
        optimizer.zero_grad(set_to_none=True)
        del optimizer, shaping  # with gradients, up to four models
        make_room(work.layout.size)
        delta = work.layout.flatten(work.model)
        delta -= before
        return LocalResult(delta, float(loss), count, steps, first_loss)

    def _differentiate(self, work: LocalWork, optimizer: Optimizer, batch: Any) -> tuple[Tensor, int]:
        """Leave the gradient of the batch's mean loss at the parameters; return (summed loss, predictions)."""
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                pieces = self.micro_batch.pieces(batch)
                return self._whole(work, batch) if len(pieces) == 1 else self._in_turn(work, pieces)
            except torch.OutOfMemoryError:
                # Memory is free again only after this block, which holds on to the frames of the failed attempt.
                line = None if self.total is not None else self._spare(work.model, batch)
                if line is None:
                    raise
            log.warning("out of memory on %s: training goes on with %s, and the same steps", work.device, line)

    def _spare(self, model: nn.Module, batch: Any) -> str | None:
        """Take less memory from now on; return how, or None where it can be no less."""
        if self.micro_batch.halve(batch):
            return f"{self.micro_batch.max_rows} rows of a batch at a time"
        if self.micro_batch.recomputes or next(blocks_of(model), None) is None:
            return None
        self.micro_batch.recomputes = True
        return "what goes into each block kept, and the rest computed twice"

    def _whole(self, work: LocalWork, batch: Any) -> tuple[Tensor, int]:
        loss, predictions = self._loss(work, batch)
        if self.total is not None:
            loss, predictions = self.total(loss, predictions)
        torch.autograd.backward(loss / max(predictions, 1))
        return loss.detach(), predictions

    def _in_turn(self, work: LocalWork, pieces: Sequence[Any]) -> tuple[Tensor, int]:
        """Add up the gradients of summed losses: how many predictions they are a mean over shows at the end."""
        total, predictions = torch.zeros((), dtype=torch.float64), 0
        for piece in pieces:
            loss, count = self._loss(work, piece)
            torch.autograd.backward(loss)
            total, predictions = total + loss.detach().cpu().double(), predictions + count
            del loss  # and with it what is left of its graph, before the next one is made
        for parameter in trained_parameters(work.model).values():
            if parameter.grad is not None:
                parameter.grad.div_(max(predictions, 1))
        return total, predictions

    def _loss(self, work: LocalWork, batch: Any) -> tuple[Tensor, int]:
        is_rough = work.training.precision == "bfloat16"
        with (
            torch.autocast(torch.device(work.device).type, torch.bfloat16) if is_rough else nullcontext(),
            recomputed(work.model) if self.micro_batch.recomputes else nullcontext(),
        ):
            return work.task.loss(work.model, batch)

    def _step(self, work: LocalWork, optimizer: Optimizer, shaping: _Shaping, lr: float) -> None:
        shaping.apply(work.model)
        if work.training.schedule is not None:  # else it may be an optimizer that finds its own
            for group in optimizer.param_groups:
                group["lr"] = lr
        if work.training.max_grad_norm is not None:
            parameters = [one for group in optimizer.param_groups for one in group["params"]]  # a module takes longer
            nn.utils.clip_grad_norm_(parameters, work.training.max_grad_norm)
        optimizer.step()


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
        if not self.start and not self.changes:
            return
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


def train(work: LocalWork, shipped: LocalTrainer | None = None) -> LocalResult:
    """Train as the run says; `shipped` is what trains where it names no trainer.

    Raises:
        PolicyViolation: the deadline passes.
        ConfigError: a trainer that is not the shipped one failed, or its result is none of this model.
    """
    config = work.training.trainer
    if config is None:
        return (shipped or BatchTrainer()).train(work)
    start = None if work.start is None else work.start.view()
    if start is not None:
        start.flags.writeable = False  # it is what the server sent, which the node still needs
    try:
        result = config.build().train(replace(work, start=start))
    except OutOfTime:
        raise
    except (Exception, SystemExit):
        # The server gets the line, and what an error says may quote the owner's text, so that stays here.
        log.error("training.trainer: %s:\n%s", config.type, traceback.format_exc())
        line = f"training.trainer: {config.type} must not fail, and has; its owner's log says why"
        raise ConfigError("AGFL-CONFIG-231", line) from None
    work.check_deadline()
    return _checked(result, work, f"training.trainer: {config.type}")


def _checked(result: object, work: LocalWork, source: str) -> LocalResult:
    """Return a result with plain numbers; refuse what no run of the trainer should return, whatever the text.

    That numbers ran away is no refusal, which would tell the server of this owner alone: `Divergence` counts it.
    """
    if not isinstance(result, LocalResult):
        raise ConfigError("AGFL-CONFIG-232", f"{source} must return a LocalResult, and has not")
    delta, wanted = result.delta, (work.layout.size,)
    if not isinstance(delta, np.ndarray) or delta.shape != wanted or delta.dtype != np.float32:
        raise ConfigError("AGFL-CONFIG-233", f"{source} must return a delta of float32 {wanted}, and has not")
    try:
        counts = [operator.index(count) for count in (result.num_steps, result.num_predictions)]
        losses = [float(loss) for loss in (result.loss, result.first_loss)]
    except (TypeError, ValueError, OverflowError):
        counts, losses = [0, 0], []
    steps, predictions = counts
    if not (1 <= steps <= _MAX_STEPS and 0 <= predictions <= _MAX_PREDICTIONS and losses):
        # No value: the server gets the line, and a count is of the owner's text.
        rule = "must return losses that are numbers, and counts of steps and predictions that are whole ones"
        raise ConfigError("AGFL-CONFIG-234", f"{source} {rule}, and has not")
    return LocalResult(delta, losses[0], predictions, steps, losses[1])


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
