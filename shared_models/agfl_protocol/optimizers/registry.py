"""All server optimizers that a run can name: those that can be arms of `auto`, and one line for each other one."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from agfl_protocol.optimizers.arms import ARMS
from agfl_protocol.optimizers.drift import FedDynConfig, ScaffoldConfig
from agfl_protocol.optimizers.fedexp import FedExPConfig
from agfl_protocol.optimizers.portfolio import PortfolioConfig
from agfl_protocol.optimizers.server_optimizer import OptimizerConfig, ServerOptimizer, Wrap

OPTIMIZERS: tuple[type[OptimizerConfig], ...] = (
    *ARMS,
    FedExPConfig,
    ScaffoldConfig,
    FedDynConfig,
    PortfolioConfig,
)

if TYPE_CHECKING:
    ServerOptimizerConfig: TypeAlias = OptimizerConfig
else:  # one of them, told apart by `type`
    ServerOptimizerConfig = Annotated[reduce(or_, OPTIMIZERS), Field(discriminator="type")]


def build_optimizer(config: OptimizerConfig, wrap: Wrap = lambda optimizer: optimizer) -> ServerOptimizer:
    """Return the optimizer that a run names; `wrap` is put around each that makes a step of its own."""
    return config.build(wrap)
