"""SCAFFOLD and FedDyn on the server: the sum of all owners' states, and the step that it corrects.

Notation: x model, Delta mean update, s_i the state of owner i in the unit of an update (`agfl_protocol.methods.drift`),
N how many owners there are: all that were ever connected or counted, since the papers' N is whoever may be drawn. The
server keeps the sum, which is exact whatever N is, and divides when it uses it: an N that is too large, or grows, makes
corrections smaller but moves no fixed point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agfl_protocol.config.optimizer_config import FedDynConfig, ScaffoldConfig
from agfl_protocol.methods.drift import LOST, ControlVariates, DynamicRegularizer
from agfl_protocol.update import Total
from agfl_server.methods.server_optimizer import Array, OptimizerState, ServerOptimizer

_SUM, _OWNERS = "sum", "owners"


@dataclass(frozen=True)
class Scaffold(ServerOptimizer):
    """x += lr * Delta; c += |S| / N * mean change of c_i (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1).

    State: `sum`: of all s_i; `owners`: N.
    """

    config: ScaffoldConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """All states are zero."""
        return {_SUM: np.zeros_like(model), _OWNERS: np.ones(1, np.int64)}

    def control(self, state: OptimizerState) -> Array:
        """c, in the unit of an update."""
        control: Array = state[_SUM] / int(state[_OWNERS][0])
        return control

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        after = _sum_after(state, ControlVariates.change(self.control(state), mean.delta), mean)
        step = model.dtype.type(self.config.lr) * mean.delta
        return model + step, {_SUM: after, _OWNERS: np.full(1, mean.owners, np.int64)}


@dataclass(frozen=True)
class FedDyn(ServerOptimizer):
    """h -= alpha / N * sum(Delta_i); x += Delta - h / alpha (Acar et al. 2021, arXiv:2111.04263, Algorithm 1).

    State: `sum`: of all s_i, which is N h / alpha.
    """

    config: FedDynConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """All states are zero."""
        return {_SUM: np.zeros_like(model)}

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        after = _sum_after(state, DynamicRegularizer.change(model[:0], mean.delta), mean)
        return model + mean.delta - after / mean.owners, {_SUM: after}


def _sum_after(state: OptimizerState, change: Array, mean: Total) -> Array:
    """Return the sum of states after a round with the mean `change`; zero where all owners begin anew."""
    if mean.metrics[LOST]:
        return np.zeros_like(change)
    after: Array = state[_SUM] + mean.count * change
    return after
