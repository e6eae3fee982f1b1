"""How the server steps from the mean update of a round: each server optimizer is one file, and one line below."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from agfl_protocol.optimizers import adaptive as adaptive
from agfl_protocol.optimizers import drift as drift
from agfl_protocol.optimizers import fedavg as fedavg
from agfl_protocol.optimizers import fedexp as fedexp
from agfl_protocol.optimizers import momentum as momentum
from agfl_protocol.optimizers import portfolio as portfolio
from agfl_protocol.optimizers.server_optimizer import OPTIMIZERS, OptimizerConfig, ServerOptimizer, Wrap

ServerOptimizerConfig: TypeAlias = Annotated[OptimizerConfig, OPTIMIZERS]


def build_optimizer(config: OptimizerConfig, wrap: Wrap = lambda optimizer: optimizer) -> ServerOptimizer:
    """Return the optimizer that a run names; `wrap` is put around each that makes a step of its own."""
    return config.build(wrap)
