"""The server optimizers that step by the mean update alone, hence can be arms of `auto`: one line each."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from agfl_protocol.optimizers.adaptive import FedAdagradConfig, FedAdamConfig, FedYogiConfig
from agfl_protocol.optimizers.fedavg import FedAvgConfig
from agfl_protocol.optimizers.momentum import FedAvgMConfig, NesterovConfig
from agfl_protocol.optimizers.server_optimizer import OptimizerConfig

ARMS: tuple[type[OptimizerConfig], ...] = (
    FedAvgConfig,
    FedAvgMConfig,
    NesterovConfig,
    FedAdagradConfig,
    FedAdamConfig,
    FedYogiConfig,
)

if TYPE_CHECKING:
    ArmConfig: TypeAlias = OptimizerConfig
else:  # one of them, told apart by `type`
    ArmConfig = Annotated[reduce(or_, ARMS), Field(discriminator="type")]
