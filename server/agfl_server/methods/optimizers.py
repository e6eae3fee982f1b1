"""Server optimizers: how the mean delta of a round moves the global model.

Notation of Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2: x model, Delta mean delta, m first and v second moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agfl_protocol.config.optimizer_config import (
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedDynConfig,
    FedExPConfig,
    FedYogiConfig,
    NesterovConfig,
    PortfolioConfig,
    ScaffoldConfig,
    ServerOptimizerConfig,
)
from agfl_protocol.methods.square_norm import SQUARE_NORM
from agfl_protocol.update import Total
from agfl_server.methods.portfolio import Portfolio
from agfl_server.methods.server_optimizer import Array, OptimizerState, ServerOptimizer


@dataclass(frozen=True)
class FedAvg(ServerOptimizer):
    """x += lr * Delta (McMahan et al. 2017, arXiv:1602.05629)."""

    config: FedAvgConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """No state."""
        return {}

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        return model + _scalar(self.config.lr, model) * mean.delta, {}


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

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        beta, lr = _scalar(self.config.momentum, model), _scalar(self.config.lr, model)
        m = beta * state["m"] + mean.delta
        direction = mean.delta + beta * m if isinstance(self.config, NesterovConfig) else m
        return model + lr * direction, {"m": m}


@dataclass(frozen=True)
class Adaptive(ServerOptimizer):
    """FedAdagrad, FedAdam and FedYogi: Algorithm 2 of Reddi et al. 2021, v_{-1} = tau^2, no bias correction."""

    config: FedAdagradConfig | FedAdamConfig | FedYogiConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """Momentum zero, second moment tau^2."""
        return {"m": np.zeros_like(model), "v": np.full_like(model, self.config.tau**2)}

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        beta1, lr, tau = (_scalar(x, model) for x in (self.config.beta1, self.config.lr, self.config.tau))
        m = beta1 * state["m"] + (1 - beta1) * mean.delta
        v = self._second_moment(state["v"], np.square(mean.delta))
        return model + lr * m / (np.sqrt(v) + tau), {"m": m, "v": v}

    def _second_moment(self, v: Array, square: Array) -> Array:
        if isinstance(self.config, FedAdagradConfig):
            return v + square
        beta2 = _scalar(self.config.beta2, v)
        if isinstance(self.config, FedAdamConfig):
            after: Array = beta2 * v + (1 - beta2) * square
        else:
            after = v - (1 - beta2) * square * np.sign(v - square)
        return after


@dataclass(frozen=True)
class FedExP(ServerOptimizer):
    """x += lr * Delta with lr = max(1, sum(p_i |Delta_i|^2) / (2 (|Delta|^2 + epsilon))), at most `max_lr`.

    Jhunjhunwala et al. 2023, arXiv:2301.09604, equation 5, there with p_i = 1/M.
    """

    config: FedExPConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """No state."""
        return {}

    def step(self, model: Array, mean: Total, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        square = float(np.square(mean.delta, dtype=np.float64).sum())
        lr = max(1.0, mean.metrics[SQUARE_NORM] / (2 * (square + self.config.epsilon)))
        return model + _scalar(min(lr, self.config.max_lr), model) * mean.delta, {}


def build_optimizer(
    config: ServerOptimizerConfig, wrap: Callable[[ServerOptimizer], ServerOptimizer] = lambda optimizer: optimizer
) -> ServerOptimizer:
    """Return the optimizer that the run configuration names; `wrap` is put around each that makes a step of its own."""
    match config:
        case FedAvgConfig():
            return wrap(FedAvg(config))
        case FedAvgMConfig() | NesterovConfig():
            return wrap(Momentum(config))
        case PortfolioConfig():
            return Portfolio(config, tuple(build_optimizer(arm, wrap) for arm in config.arms))
        case FedExPConfig():
            return wrap(FedExP(config))
        case ScaffoldConfig():
            return FedAvg(FedAvgConfig(type="fedavg", lr=config.lr))  # its method does all else
        case FedDynConfig():
            return FedAvg(FedAvgConfig(type="fedavg"))
        case FedAdagradConfig() | FedAdamConfig() | FedYogiConfig():
            return wrap(Adaptive(config))


def _scalar(value: float, like: Array) -> Any:
    """A hyperparameter in the model's own dtype, so that float32 stays float32."""
    return like.dtype.type(value)
