"""FedExP: a step as long as the clients' updates differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agfl_models.bounded import MOST_FACTOR, Factor
from agfl_protocol.methods.method import MethodConfig
from agfl_protocol.methods.square_norm import SQUARE_NORM, SquareNormConfig
from agfl_protocol.optimizers.server_optimizer import (
    OPTIMIZERS,
    Array,
    OptimizerConfig,
    OptimizerState,
    ServerOptimizer,
    Wrap,
    scalar,
)
from agfl_protocol.update import Mean


@OPTIMIZERS.register
class FedExPConfig(OptimizerConfig):
    """A step as long as the clients' updates differ (FedExP, Jhunjhunwala et al. 2023, arXiv:2301.09604).

    max_lr: ours; without it the step has no bound where updates cancel out.
    """

    type: Literal["fedexp"]
    epsilon: Factor = 1e-3
    max_lr: Annotated[float, Field(ge=1, le=MOST_FACTOR)] = 5.0

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """The squares of updates."""
        return (SquareNormConfig(type="square_norm"),)

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Its step."""
        return wrap(FedExP(self))


@dataclass(frozen=True)
class FedExP(ServerOptimizer):
    """x += lr * Delta with lr = max(1, sum(p_i |Delta_i|^2) / (2 (|Delta|^2 + epsilon))), at most `max_lr`.

    Jhunjhunwala et al. 2023, arXiv:2301.09604, equation 5, there with p_i = 1/M.
    """

    config: FedExPConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """No state."""
        return {}

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        square = float(np.square(mean.delta, dtype=np.float64).sum())
        lr = max(1.0, mean.metrics[SQUARE_NORM] / (2 * (square + self.config.epsilon)))
        return model + scalar(min(lr, self.config.max_lr), model) * mean.delta, {}
