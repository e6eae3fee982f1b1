"""`auto`: several server optimizers on one history of updates; the owners' losses say whether the first is to step.

Every arm sees the mean update of every round, so its state is that of a run of its own from here on. Every few rounds
the models to which the other arms would have stepped are broadcast beside the one that is trained; the loss of each
rides in the ordinary sum: the server learns sums over owners, as always. Only losses of one round are compared, since
the next round's owners may find the same model several times better or worse. No model is broadcast a second time:
where losses explode, `rollback` goes back, and the steps are halved.

The loss after one step favors timid arms: what momentum gains comes later. Hence the first arm steps unless another is
better by a margin, and this is a safety net where that arm fails rather than a race that any arm may win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agfl_models.bounded import Examples, FactorOrZero, Rounds
from agfl_protocol.methods.candidates import CandidatesConfig, candidate_losses
from agfl_protocol.methods.method import MethodConfig
from agfl_protocol.optimizers.adaptive import FedAdamConfig
from agfl_protocol.optimizers.fedavg import FedAvgConfig
from agfl_protocol.optimizers.momentum import NesterovConfig
from agfl_protocol.optimizers.server_optimizer import (
    ARMS,
    OPTIMIZERS,
    Array,
    OptimizerConfig,
    OptimizerState,
    ServerOptimizer,
    Wrap,
)
from agfl_protocol.update import Mean

_CHOICE, _AGE, _SCALE, _OTHERS = "choice", "age", "scale", "others"


@OPTIMIZERS.register
class PortfolioConfig(OptimizerConfig):
    """Several optimizers on the same updates: the server takes the first one's step, or that of a better one.

    every: rounds from one choice to the next; in such a round the models of all arms are broadcast.
    max_examples: on which an owner evaluates each. arms: the first one's step is taken unless the loss of another
    is less by more than `margin`, in nats a prediction: ratios would mean little where the loss is near zero.
    """

    type: Literal["auto"]
    every: Rounds = 3
    max_examples: Examples = 64
    margin: FactorOrZero = 0.1
    arms: Annotated[tuple[Annotated[OptimizerConfig, ARMS], ...], Field(min_length=2, max_length=8)] = (
        NesterovConfig(type="nesterov"),
        NesterovConfig(type="nesterov", lr=0.3),
        FedAvgConfig(type="fedavg"),
        FedAdamConfig(type="fedadam"),
    )

    @property
    def num_models(self) -> int:
        """How many models are broadcast where a choice is due: one of each arm."""
        return len(self.arms)

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """The losses of all arms' models."""
        num_models, max_examples = self.num_models, self.max_examples
        return (CandidatesConfig(type="candidates", num_models=num_models, max_examples=max_examples),)

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """All arms."""
        return Portfolio(self, tuple(arm.build(wrap) for arm in self.arms))


@dataclass(frozen=True)
class Portfolio(ServerOptimizer):
    """Takes the step of one arm at a time.

    State: each arm's own; `choice`: which arm steps; `age`: rounds since it was chosen; `others`: what is evaluated in
    the next round beside the model, those of the other arms; `scale`: of all steps, halved by each rollback.
    """

    config: PortfolioConfig
    arms: tuple[ServerOptimizer, ...]

    def initial_state(self, model: Array) -> OptimizerState:
        """The first arm is the first choice; the others are looked at after the first step."""
        return {
            **self._fresh(model),
            _CHOICE: np.zeros(1, np.int64),
            _AGE: np.full(1, self.config.every, np.int64),
            _SCALE: np.ones(1),
            _OTHERS: model[:0],
        }

    def broadcast(self, model: Array, state: OptimizerState) -> Array:
        """The model, and where a choice is due after it those of the other arms."""
        return np.concatenate([model, state[_OTHERS]]) if state[_OTHERS].size else model

    def chosen(self, state: OptimizerState) -> str:
        """The arm that steps, in words."""
        label = self.config.arms[int(state[_CHOICE][0])].label
        scale = float(state[_SCALE][0])
        return label + (f" times {scale:g}" if scale != 1 else "")

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """Choose, if the losses are there, then step."""
        choice, losses = int(state[_CHOICE][0]), candidate_losses(mean.metrics, self.config.num_models)
        if losses:
            own, *others = losses
            choice = self._choose([*others[:choice], own, *others[choice:]])
        scale = model.dtype.type(state[_SCALE][0])
        steps = [arm.step(model, mean, _of_arm(i, state)) for i, arm in enumerate(self.arms)]
        models = [model + scale * (stepped - model) for stepped, _ in steps]
        age = 1 if losses else int(state[_AGE][0]) + 1
        is_due = age >= self.config.every
        after = {f"{i}.{name}": value for i, (_, own) in enumerate(steps) for name, value in own.items()}
        return models[choice], {
            **after,
            _CHOICE: np.full(1, choice, np.int64),
            _AGE: np.full(1, age, np.int64),
            _SCALE: state[_SCALE],
            _OTHERS: np.concatenate([*models[:choice], *models[choice + 1 :]]) if is_due else model[:0],
        }

    def _choose(self, losses: list[float]) -> int:
        """Return the arm with the least loss if that is below the first one's by the margin, else the first."""
        better = (i for i, loss in enumerate(losses) if loss < losses[0] - self.config.margin)
        return min(better, key=losses.__getitem__, default=0)

    def restarted(self, model: Array, state: OptimizerState) -> OptimizerState:
        """All arms begin anew, with half the steps: that of the first may have been too long."""
        halved = {_SCALE: state[_SCALE] / 2, _AGE: np.zeros(1, np.int64), _OTHERS: model[:0]}
        return {**state, **self._fresh(model), **halved}

    def _fresh(self, model: Array) -> OptimizerState:
        states = ((i, arm.initial_state(model)) for i, arm in enumerate(self.arms))
        return {f"{i}.{name}": value for i, own in states for name, value in own.items()}


def _of_arm(number: int, state: OptimizerState) -> Mapping[str, Array]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
