"""What every server optimizer provides: its settings, what it asks of clients, and its step.

State in, state out: a step takes the state and returns the next one. Works in the dtype of its inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agfl_models.registry import Registry
from agfl_models.validation import Config
from agfl_protocol.methods.method import MethodConfig
from agfl_protocol.update import Mean

Array: TypeAlias = NDArray[np.floating[Any]]
OptimizerState: TypeAlias = Mapping[str, NDArray[Any]]


class ServerOptimizer(ABC):
    """Makes a step of the global model from the mean update of a round."""

    @abstractmethod
    def initial_state(self, model: Array) -> OptimizerState:
        """Return the state before the first step, given the model (d,)."""

    @abstractmethod
    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """Return the next model and state, given the mean update; the inputs stay as they are."""

    def restarted(self, model: Array, state: OptimizerState) -> OptimizerState:
        """Return the state from which the run goes on from an earlier model, since what came of the last is no good."""
        return self.initial_state(model)

    def broadcast(self, model: Array, state: OptimizerState) -> Array:
        """Return what a round of training broadcasts: the model (d,), and models that are only evaluated after it."""
        return model

    def chosen(self, state: OptimizerState) -> str | None:
        """Say in words which of several methods is at work, where there are several."""
        return None


Wrap: TypeAlias = Callable[[ServerOptimizer], ServerOptimizer]


class OptimizerConfig(Config):
    """The settings of a server optimizer; `type` names it."""

    type: str

    @property
    def label(self) -> str:
        """How a line names it."""
        rate = self.model_dump().get("lr")
        return self.type if rate is None else f"{self.type} lr {rate:g}"

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """What clients must do for it, beside what they do for any."""
        return ()

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Return the optimizer; `wrap` is put around each that makes a step of its own."""
        raise NotImplementedError


ARMS = Registry(OptimizerConfig)  # those that step by the mean update alone, hence can be arms of `auto`
OPTIMIZERS = Registry(OptimizerConfig, beyond=ARMS)


def scalar(value: float, like: Array) -> Any:
    """Return a hyperparameter in the model's own dtype, so that float32 stays float32."""
    return like.dtype.type(value)
