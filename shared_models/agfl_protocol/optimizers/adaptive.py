"""FedAdagrad, FedAdam and FedYogi: a step of adaptive rates.

Notation of Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2: x model, Delta mean delta, m first and v second moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from agfl_models.bounded import Factor
from agfl_protocol.config.training_config import Beta
from agfl_protocol.optimizers.server_optimizer import ARMS, Array, OptimizerState, ServerOptimizer, Wrap, scalar
from agfl_protocol.optimizers.tuned import TunedConfig
from agfl_protocol.update import Mean


class AdaptiveConfig(TunedConfig):
    """What the three have in common."""

    lr: Factor = 1e-2
    beta1: Beta = 0.9
    tau: Factor = 1e-3

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Its step."""
        return wrap(Adaptive(self))


@ARMS.register
class FedAdagradConfig(AdaptiveConfig):
    """FedAdagrad (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2)."""

    type: Literal["fedadagrad"]


@ARMS.register
class FedAdamConfig(AdaptiveConfig):
    """FedAdam (Reddi et al. 2021, Algorithm 2)."""

    type: Literal["fedadam"]
    beta2: Beta = 0.99


@ARMS.register
class FedYogiConfig(AdaptiveConfig):
    """FedYogi (Reddi et al. 2021, Algorithm 2)."""

    type: Literal["fedyogi"]
    beta2: Beta = 0.99


@dataclass(frozen=True)
class Adaptive(ServerOptimizer):
    """FedAdagrad, FedAdam and FedYogi: Algorithm 2 of Reddi et al. 2021, v_{-1} = tau^2, no bias correction."""

    config: AdaptiveConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """Momentum zero, second moment tau^2."""
        return {"m": np.zeros_like(model), "v": np.full_like(model, self.config.tau**2)}

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        beta1, lr, tau = (scalar(x, model) for x in (self.config.beta1, self.config.lr, self.config.tau))
        m = beta1 * state["m"] + (1 - beta1) * mean.delta
        v = self._second_moment(state["v"], np.square(mean.delta))
        return model + lr * m / (np.sqrt(v) + tau), {"m": m, "v": v}

    def _second_moment(self, v: Array, square: Array) -> Array:
        if isinstance(self.config, FedAdagradConfig):
            return v + square
        assert isinstance(self.config, FedAdamConfig | FedYogiConfig)
        beta2 = scalar(self.config.beta2, v)
        if isinstance(self.config, FedAdamConfig):
            after: Array = beta2 * v + (1 - beta2) * square
        else:
            after = v - (1 - beta2) * square * np.sign(v - square)
        return after
