"""One owner's part in a round: evaluate and train as asked, and let each method say what it needs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agfl_client.training.deadline import Deadline
from agfl_client.training.evaluation import evaluate, validation_loss
from agfl_client.training.trainer import effective_steps, train
from agfl_client.training.workspace import Workspace
from agfl_models.tasks.evaluation import HeldOut
from agfl_protocol.local_trainer import LocalTrainer, LocalWork
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.methods.method import Gradient, Method, State, States
from agfl_protocol.update import Update, Vector


@dataclass(frozen=True)
class LocalRound:
    """What a request asks of an owner.

    draw: its randomness for one purpose, the same each time. trainer: the shipped one, None for one that begins anew.
    """

    space: Workspace
    request: RoundRequest
    draw: Callable[[str], np.random.Generator]
    deadline: Deadline
    trainer: LocalTrainer | None = None

    @property
    def models(self) -> NDArray[np.float32]:
        """The models that were broadcast, (m, d)."""
        return self.request.model.reshape(-1, self.space.layout.size)

    @property
    def tier(self) -> int:
        """How many rings of an elastic model this owner's device can hold."""
        return self.space.tier

    @property
    def num_rings(self) -> int:
        """How many of them it trains."""
        return self.space.part.num_rings

    def loss(self, model: Vector, max_examples: int, purpose: str) -> tuple[float, int]:
        """Return the loss of a model (d,) on validation examples, summed over predictions, and how many these are."""
        self.space.part.load(model)
        return self._loss(max_examples, purpose)

    def losses_by_ring(self, max_examples: int, purpose: str) -> tuple[list[float], int]:
        """Return the loss of the broadcast model up to each ring that this owner trains, and the predictions of each.

        No losses where the model is not elastic.
        """
        part, losses, predictions = self.space.part, [], 0
        if part.widths is None:
            return [], 0
        part.load(self.models[0])
        for number in range(1, part.num_rings + 1):
            with part.widths.at(number):
                loss, predictions = self._loss(max_examples, purpose)
            losses.append(loss)
        return losses, predictions

    def run(self, methods: tuple[Method, ...], own: States) -> tuple[Update, dict[str, State]]:
        """Return what this owner makes of the model, and what each method knows of it.

        own: what this owner alone knows, by method, beside what was broadcast.

        Raises:
            PolicyViolation: the deadline passes.
        """
        space, request = self.space, self.request
        states: dict[str, State] = {
            method.name: {
                **request.arrays.get(method.name, {}),
                **own.get(method.name, {}),
                **(method.observe(self) if request.train else {}),
            }
            for method in methods
        }
        metrics = self._evaluate(methods) if request.evaluate else {}
        if not request.train:
            return Update(np.zeros(0, np.float32), 1.0, metrics), states
        space.part.load(self.models[0])
        gradients = [self._of_part(found) for method in methods if (found := method.gradient(states[method.name]))]
        work = LocalWork(
            space.part.model,
            space.part.layout,
            space.task,
            space.dataset,
            self.draw("batches"),
            space.plan.training,
            space.device,
            gradients,
            space.part.widths,
            self.deadline.check,
            space.plan.training.first_step(request.round),
            self.models[0] if space.part.holds_all_bits else None,
        )
        result = train(work, self.trainer)
        sums = (result.loss, float(result.num_predictions))
        metrics |= dict(zip(space.task.train_sums, sums, strict=True))
        steps = effective_steps(space.plan.training, result.num_steps)
        delta, count = space.part.spread(result.delta), result.num_predictions
        return Update(delta, count, metrics, loss=result.first_loss, steps=steps), states

    def _of_part(self, gradient: Gradient) -> Gradient:
        held = self.space.part.held
        if held is None or gradient.shift is None:
            return gradient
        return replace(gradient, shift=gradient.shift[held])

    def _evaluate(self, methods: tuple[Method, ...]) -> dict[str, float]:
        space, request = self.space, self.request
        space.part.load(self.models[0])
        examples = space.plan.evaluation.max_examples
        held_out = self._held_out(examples, None if request.full else "evaluation")
        metrics = evaluate(space.part.model, held_out)
        for method in methods:
            metrics |= method.observe_eval(self, examples)
        return metrics

    def _loss(self, max_examples: int, purpose: str) -> tuple[float, int]:
        return validation_loss(self.space.part.model, self._held_out(max_examples, purpose))

    def _held_out(self, max_examples: int, purpose: str | None) -> HeldOut:
        """Return this owner's validation examples: the first, or for a purpose those that it draws for that."""
        space, rng = self.space, None if purpose is None else self.draw(purpose)
        size = space.plan.training.batch_size
        return HeldOut(space.task, space.dataset, size, max_examples, space.device, rng, self.deadline.check)
