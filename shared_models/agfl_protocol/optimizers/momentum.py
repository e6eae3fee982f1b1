"""FedAvgM and Nesterov: a step by the momentum of mean updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from agfl_models.bounded import Factor
from agfl_protocol.config.training_config import Beta
from agfl_protocol.optimizers.server_optimizer import (
    ARMS,
    Array,
    OptimizerConfig,
    OptimizerState,
    ServerOptimizer,
    Wrap,
    scalar,
)
from agfl_protocol.optimizers.tuned import TunedConfig
from agfl_protocol.update import Mean


@ARMS.register
class FedAvgMConfig(TunedConfig):
    """Server momentum (Hsu et al. 2019, arXiv:1909.06335)."""

    type: Literal["fedavgm"]
    lr: Factor = 1.0
    momentum: Beta = 0.9

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Its step."""
        return wrap(Momentum(self))


@ARMS.register
class NesterovConfig(OptimizerConfig):
    """Nesterov momentum on the mean delta (DiLoCo, Douillard et al. 2023, arXiv:2311.08105)."""

    type: Literal["nesterov"]
    lr: Factor = 0.7
    momentum: Beta = 0.9

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Its step."""
        return wrap(Momentum(self))


@dataclass(frozen=True)
class Momentum(ServerOptimizer):
    """FedAvgM and Nesterov: m = beta * m + Delta, then x += lr * m, or lr * (Delta + beta * m) looking ahead.

    FedAvgM: Hsu et al. 2019, arXiv:1909.06335. Nesterov: DiLoCo, Douillard et al. 2023, arXiv:2311.08105, as
    `torch.optim.SGD(nesterov=True)` on -Delta.
    """

    config: FedAvgMConfig | NesterovConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """The momentum starts at zero."""
        return {"m": np.zeros_like(model)}

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        beta, lr = scalar(self.config.momentum, model), scalar(self.config.lr, model)
        m = beta * state["m"] + mean.delta
        direction = mean.delta + beta * m if isinstance(self.config, NesterovConfig) else m
        return model + lr * direction, {"m": m}
