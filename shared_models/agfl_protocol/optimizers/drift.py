"""SCAFFOLD and FedDyn as a run names them: a plain step of the server, and a method that has owners keep state."""

from __future__ import annotations

from typing import Literal

from agfl_models.bounded import Factor
from agfl_protocol.methods.method import MethodConfig
from agfl_protocol.methods.owner_states.feddyn import FedDynMethodConfig
from agfl_protocol.methods.owner_states.scaffold import ScaffoldMethodConfig
from agfl_protocol.optimizers.fedavg import FedAvgConfig
from agfl_protocol.optimizers.server_optimizer import OPTIMIZERS, OptimizerConfig, ServerOptimizer, Wrap


@OPTIMIZERS.register
class ScaffoldConfig(OptimizerConfig):
    """Control variates at each owner (SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378): `methods.owner_states`.

    lr: of the server's step.
    """

    type: Literal["scaffold"]
    lr: Factor = 1.0

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """Owners keep state."""
        return (ScaffoldMethodConfig(type="scaffold"),)

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """A plain step: the method does all else."""
        return FedAvgConfig(type="fedavg", lr=self.lr).build(wrap)


@OPTIMIZERS.register
class FedDynConfig(OptimizerConfig):
    """A regularizer that each owner learns (FedDyn, Acar et al. 2021, arXiv:2111.04263): `methods.owner_states`.

    alpha: of the pull toward the global model, alpha / 2 |x - x_0|^2, and of what an owner remembers of past rounds.
    """

    type: Literal["feddyn"]
    alpha: Factor = 0.1

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """Owners keep state."""
        return (FedDynMethodConfig(type="feddyn", alpha=self.alpha),)

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """A plain step: the method does all else."""
        return FedAvgConfig(type="fedavg").build(wrap)
