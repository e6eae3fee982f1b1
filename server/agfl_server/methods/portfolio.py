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

import numpy as np

from agfl_protocol.config.optimizer_config import PortfolioConfig
from agfl_protocol.methods.candidates import candidate_losses
from agfl_protocol.update import Total
from agfl_server.methods.server_optimizer import Array, OptimizerState, ServerOptimizer

_CHOICE, _AGE, _SCALE, _OTHERS = "choice", "age", "scale", "others"


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
        config = self.config.arms[int(state[_CHOICE][0])]
        scale = float(state[_SCALE][0])
        return f"{config.type} lr {config.lr:g}" + (f" times {scale:g}" if scale != 1 else "")

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
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
