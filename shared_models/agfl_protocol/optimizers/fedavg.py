"""FedAvg: a step by the mean update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agfl_models.bounded import Factor
from agfl_protocol.optimizers.server_optimizer import ARMS, Array, OptimizerState, ServerOptimizer, Wrap, scalar
from agfl_protocol.optimizers.tuned import TunedConfig
from agfl_protocol.update import Mean


@ARMS.register
class FedAvgConfig(TunedConfig):
    """x += lr * delta (McMahan et al. 2017)."""

    type: Literal["fedavg"]
    lr: Factor = 1.0

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Its step."""
        return wrap(FedAvg(self))


@dataclass(frozen=True)
class FedAvg(ServerOptimizer):
    """x += lr * Delta (McMahan et al. 2017, arXiv:1602.05629)."""

    config: FedAvgConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """No state."""
        return {}

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        after = scalar(self.config.lr, model) * mean.delta
        after += model
        return after, {}
