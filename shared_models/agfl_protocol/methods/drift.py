"""SCAFFOLD and FedDyn: owners keep state against the drift of local training, and the server the sum of the states.

The state s_i of an owner, float32 (d,), is zero at first and in the unit of an update. It corrects each gradient of a
round, and then becomes s_i + `change`(s, u_i), where u_i is what the owner sent, clipped and rounded, and s what was
broadcast beside the model. That is affine in u_i: the sum of the updates tells the server the sum of the changes. So no
second vector goes up, sum(s_i) stays what the server takes it for, to the last digits of float32, and the bound of an
update is one of the change, too. All must weigh alike and, with SCAFFOLD, take the same steps: K lr is public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.config.optimizer_config import FedDynConfig, ScaffoldConfig, SGDConfig
from agfl_protocol.methods.method import Method, Round, State
from agfl_protocol.update import Update

if TYPE_CHECKING:
    from agfl_protocol.config.run_config import RunConfig

IS_LOST = "is_lost"
LOST = "drift/lost"  # the sum that says how many owners have lost their state
Array: TypeAlias = NDArray[np.floating[Any]]


class Drift(Protocol):
    """What an owner does with its state `own` (d,), given what was broadcast, `control`: (d,), or empty."""

    @property
    def proximal_mu(self) -> float:
        """Pull toward the global model, mu / 2 |x - x_0|^2 beside the loss."""
        ...

    def correction(self, own: Array, control: Array) -> Array:
        """Return what is added to each gradient, (d,)."""
        ...

    @staticmethod
    def change(control: Array, update: Array) -> Array:
        """Return by how much the state changes with an update (d,); of the mean update, the mean change."""
        ...


@dataclass(frozen=True)
class ControlVariates:
    """SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II; s_i is K lr c_i, and s is K lr c.

    The local step is -lr (g - c_i + c); c_i becomes c_i - c + (x - y_i) / (K lr), where x - y_i is minus the update.
    reach: K lr, of all clients the same.
    """

    reach: float
    proximal_mu: float = 0.0

    def correction(self, own: Array, control: Array) -> Array:
        """c - c_i."""
        return (control - own) / self.reach

    @staticmethod
    def change(control: Array, update: Array) -> Array:
        """-s - u_i."""
        return -control - update


@dataclass(frozen=True)
class DynamicRegularizer:
    """FedDyn, Acar et al. 2021, arXiv:2111.04263, Algorithm 1; s_i is the owner's gradient state over alpha.

    The local loss is L - <alpha s_i, x> + alpha / 2 |x - x_0|^2; alpha s_i becomes alpha s_i - alpha u_i.
    """

    proximal_mu: float

    def correction(self, own: Array, control: Array) -> Array:
        """-alpha s_i."""
        return -self.proximal_mu * own

    @staticmethod
    def change(control: Array, update: Array) -> Array:
        """-u_i; nothing is broadcast."""
        return -update


@dataclass(frozen=True)
class OwnerStates(Method):
    """What a sum says of owners' states: how many are lost. That is told also of an owner whose numbers ran away.

    State of a client: `is_lost`.
    """

    name = "drift"

    @classmethod
    def of(cls, round_: Round) -> OwnerStates | None:
        """Where owners keep state."""
        return None if drift_of(round_.config) is None else OwnerStates()

    @staticmethod
    def refuse_misfit(config: RunConfig) -> None:
        """All must weigh alike and, with SCAFFOLD, take the same steps; the method has a pull of its own."""
        aggregation, training = config.aggregation, config.training
        optimizer = aggregation.server_optimizer
        if not isinstance(optimizer, ScaffoldConfig | FedDynConfig):
            return
        name = optimizer.type
        if (aggregation.weighting, aggregation.averaging) != ("uniform", "mean"):
            rule = f"{name} needs weighting uniform and averaging mean"
            got = f"{aggregation.weighting} and {aggregation.averaging}"
            raise ValueError(f"aggregation.server_optimizer: {rule}, got {got}")
        needs = f"with server_optimizer {name}"
        if training.proximal_mu > 0:
            raise ValueError(f"training.proximal_mu must be 0 {needs}, got {training.proximal_mu}")
        if isinstance(optimizer, FedDynConfig):
            return
        if not isinstance(training.optimizer, SGDConfig) or training.optimizer.momentum > 0:
            got = training.optimizer.model_dump_json()
            raise ValueError(f"training.optimizer must be sgd without momentum {needs}, got {got}")
        if training.local_steps is None:
            raise ValueError(f"training.local_steps is required {needs}, since all must take as many, got None")

    @property
    def sums(self) -> tuple[str, ...]:
        """Owners that have lost their state."""
        return (LOST,)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Each owner is one."""
        return {LOST: 1.0}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Say whether this owner has lost its state."""
        return replace(update, metrics={**update.metrics, LOST: float(state[IS_LOST][0])})


def drift_of(config: RunConfig) -> Drift | None:
    """Return what owners do with their state, or None where they keep none."""
    optimizer, training = config.aggregation.server_optimizer, config.training
    if isinstance(optimizer, ScaffoldConfig):
        assert isinstance(training.optimizer, SGDConfig)
        assert training.local_steps is not None
        return ControlVariates(training.local_steps * training.optimizer.lr)
    return DynamicRegularizer(optimizer.alpha) if isinstance(optimizer, FedDynConfig) else None
