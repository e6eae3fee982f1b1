"""Local training of several owners at once: the steps of the shipped loop, each made on stacked parameters.

K owners that still train, d parameters. An owner's numbers touch nobody else's: the loss is a sum over owners, so its
gradient at an owner's parameters is that owner's own, and all else is element by element or a norm for each owner.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from agfl_client.training.optimizers.local_optimizer import new_optimizer
from agfl_models.layers.layer import at_least_float32
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.tasks.own_task import OwnTask
from agfl_models.tasks.task import SplitLoss
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_sim.engines.stacked.batches import NotStackable, Stacked

_CLIP_EPSILON = 1e-6  # of `nn.utils.clip_grad_norm_`
# PyTorch takes one after the other where it has no rule for many at once; that is slower, and no news to anybody.
warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented the batching rule")


@dataclass
class Owner:
    """One of those who train. batches: on the CPU; outcome: once it is known, what came of it."""

    work: LocalWork
    batches: Iterator[Any]
    num_predictions: int = 0
    num_steps: int = 0
    outcome: LocalResult | Exception | None = None

    @staticmethod
    def of(work: LocalWork) -> Owner:
        """Take up work, and leave its randomness as it is: it may have to be done once more."""
        return Owner(work, replace(work, rng=deepcopy(work.rng), device="cpu").batches())

    def next_batch(self) -> Any:
        """Return the next batch; None where there is none, or drawing it failed."""
        try:
            return next(self.batches, None)
        except Exception as error:  # its own alone, as one by one
            self.outcome = error
            return None


def train_together(works: Sequence[LocalWork]) -> list[LocalResult | Exception]:
    """Train all at once; return what came of each, in their order. The models of `works` are left as they are.

    Raises:
        NotStackable: the model, the task or these batches cannot be computed so.
        OutOfMemoryError: the device has too little memory for so many.
    """
    owners = [Owner.of(work) for work in works]
    Training(owners).run()
    return [owner.outcome for owner in owners if owner.outcome is not None]


class Training:
    """Of owners with one model; an owner leaves the stack after its last step."""

    def __init__(self, owners: Sequence[Owner]) -> None:
        self._owners, lead = list(owners), owners[0].work
        self._training, self._first_step, self._device = lead.training, lead.first_step, lead.device
        assert all(owner.work.layout == lead.layout for owner in owners), "they were asked at once, of one run"
        self._loss = _Loss(lead)
        models = [trained_parameters(owner.work.model) for owner in owners]
        stacks = [torch.stack([model[name].detach() for model in models]) for name in models[0]]
        self._names, self._stack = list(models[0]), nn.ParameterList(map(nn.Parameter, stacks))
        self._optimizer = new_optimizer(self._training, self._stack)
        self._start = [stack.clone() for stack in stacks] if self._training.proximal_mu > 0 else []
        self._sums = torch.zeros(len(owners), dtype=torch.float64, device=self._device)
        self._first = self._sums

    def run(self) -> None:
        """Train until every owner has its outcome."""
        for step in count():
            batches = [owner.next_batch() for owner in self._owners]
            self._part_with([place for place, batch in enumerate(batches) if batch is not None])
            batches = [batch for batch in batches if batch is not None]
            if not batches:
                return
            self._step(batches, step)

    def _step(self, batches: Sequence[Any], step: int) -> None:
        counts = [self._loss.num_predictions(batch) for batch in batches]
        per_owner = torch.tensor([max(one, 1) for one in counts], device=self._device)
        parameters = list(self._stack)
        losses = self._loss.of(dict(zip(self._names, parameters, strict=True)), Stacked.of(batches, self._device))
        gradients = torch.autograd.grad((losses / per_owner).sum(), parameters, allow_unused=True)
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if gradient is not None and self._start:  # the gradient of mu / 2 |x - x_0|^2
                gradient = gradient.add(parameter.detach() - self._start[i], alpha=self._training.proximal_mu)
            # PyTorch gives the sum of two parameters one gradient for both, which clipping would scale twice.
            parameter.grad = None if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
        if self._training.max_grad_norm is not None:
            self._clip([parameter.grad for parameter in parameters if parameter.grad is not None])
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.lr_at(self._first_step + step)
        self._optimizer.step()
        self._sums = self._sums + losses.detach().double()
        if step == 0:
            self._first = self._sums / per_owner
        for owner, predictions in zip(self._owners, counts, strict=True):
            owner.num_steps, owner.num_predictions = owner.num_steps + 1, owner.num_predictions + predictions

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Scale each owner's gradient to the norm that the run permits, as `nn.utils.clip_grad_norm_` does."""
        assert self._training.max_grad_norm is not None
        if not gradients:
            return
        norms = torch.stack([torch.linalg.vector_norm(one.flatten(1), dim=1) for one in gradients])
        wanted = self._training.max_grad_norm / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_EPSILON)
        factor_K = wanted.clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor_K.view(-1, *[1] * (gradient.ndim - 1)))

    def _part_with(self, staying: Sequence[int]) -> None:
        """Note the results of all others, and take them out of the stack."""
        if len(staying) == len(self._owners):
            return
        self._note_results(sorted(set(range(len(self._owners))) - set(staying)))
        kept = torch.tensor(staying, device=self._device, dtype=torch.long)
        self._owners = [self._owners[place] for place in staying]
        self._sums, self._first = self._sums[kept], self._first[kept]
        self._start = [start[kept] for start in self._start]
        before, self._stack = self._stack, nn.ParameterList(nn.Parameter(one.detach()[kept]) for one in self._stack)
        for old, new in zip(before, self._stack, strict=True):
            moments = self._optimizer.state.pop(old, {})  # and the number of steps, which all have alike
            self._optimizer.state[new] = {
                name: value[kept] if isinstance(value, Tensor) and value.shape == old.shape else value
                for name, value in moments.items()
            }
        self._optimizer.param_groups[0]["params"] = list(self._stack)

    def _note_results(self, leaving: Sequence[int]) -> None:
        parts = [parameter.detach()[leaving].flatten(1).to("cpu", torch.float32) for parameter in self._stack]
        trained, sums, first = torch.cat(parts, dim=1).numpy(), self._sums.tolist(), self._first.tolist()
        for place, vector in zip(leaving, trained, strict=True):
            owner, work = self._owners[place], self._owners[place].work
            delta = vector - (work.layout.flatten(work.model) if work.start is None else work.start)
            result = LocalResult(delta, sums[place], owner.num_predictions, owner.num_steps, first[place])
            owner.outcome = owner.outcome or result


class _Loss:
    """Owners' losses at their own parameters; `lead` is any owner's work, of which the model's form is taken."""

    def __init__(self, lead: LocalWork) -> None:
        if not isinstance(lead.task, SplitLoss | OwnTask):
            raise NotStackable(f"task {type(lead.task).__name__} has its loss in one part")
        if next(lead.model.buffers(), None) is not None:
            raise NotStackable("the model holds more than its weights: it has buffers")
        self._task, self._module = lead.task, _LossModule(lead.model.train(), lead.task)
        self._device, self._is_rough = torch.device(lead.device).type, lead.training.precision == "bfloat16"

    def num_predictions(self, batch: Any) -> int:
        """Return the number of predictions of an owner's batch."""
        return len(batch.tensors[0]) if isinstance(self._task, OwnTask) else self._task.num_predictions(batch)

    def of(self, parameters: Mapping[str, Tensor], batch: Stacked) -> Tensor:
        """Return the summed loss of each owner's batch, (K,); parameters: by name, each (K, ...)."""

        def of_owner(own: Mapping[str, Tensor], tensors: Mapping[str, Any], is_real_B: Tensor) -> Tensor:
            named = {f"model.{name}": value for name, value in own.items()}
            loss: Tensor = functional_call(self._module, named, (batch.of_owner(tensors), is_real_B))
            return loss

        try:
            with torch.autocast(self._device, torch.bfloat16, enabled=self._is_rough):
                losses_K: Tensor = vmap(of_owner)(dict(parameters), dict(batch.tensors), batch.is_real)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a module of somebody's own does that vmap cannot
            raise NotStackable(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
        return losses_K


class _LossModule(nn.Module):
    """What a batch costs, with the model within, so that its parameters can be given by name."""

    def __init__(self, model: nn.Module, task: SplitLoss | OwnTask) -> None:
        super().__init__()
        self.model, self._task = model, task

    def forward(self, batch: Any, is_real_B: Tensor) -> Tensor:
        """Return the summed loss of one owner's batch."""
        if isinstance(self._task, OwnTask):
            losses_B = at_least_float32(self._task.config.loss(self.model, batch.tensors))
            return torch.where(is_real_B, losses_B, 0).sum()
        return self._task.summed_loss(self.model, batch)
