"""FedDyn: a regularizer that each owner learns pulls its optimum to that of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from agfl_models.bounded import Factor
from agfl_protocol.methods.method import Gradient, MethodConfig, Round, Specs, State, Step
from agfl_protocol.methods.owner_states.owner_state import OWN, SUM, Array, OwnerState
from agfl_protocol.update import Vector

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan


class FedDynMethodConfig(MethodConfig):
    """alpha: of the pull toward the global model, alpha / 2 |x - x_0|^2, and of what an owner remembers."""

    type: Literal["feddyn"]
    keeps_state = True
    alpha: Factor


@dataclass(frozen=True)
class FedDyn(OwnerState):
    """Acar et al. 2021, arXiv:2111.04263, Algorithm 1; s_i is the owner's gradient state over alpha.

    The local loss is L - <alpha s_i, x> + alpha / 2 |x - x_0|^2; alpha s_i becomes alpha s_i - alpha u_i. On the server
    h -= alpha / N * sum(Delta_i), and x += Delta - h / alpha, where h is alpha / N times the sum of all s_i.
    """

    name = "feddyn"
    config = FedDynMethodConfig
    alpha: float

    @classmethod
    def of(cls, round_: Round) -> FedDyn | None:
        """Where the run says so."""
        config = round_.plan.method(FedDynMethodConfig)
        return None if config is None else FedDyn(round_.plan.aggregation.type == "secure", config.alpha)

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """All must weigh alike."""
        if plan.method(FedDynMethodConfig) is not None:
            OwnerState.refuse_unlike(plan, "feddyn")

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """What all such methods broadcast."""
        return OwnerState.arrays_of(plan, FedDynMethodConfig, train=train)

    def gradient(self, state: State) -> Gradient:
        """Add -alpha s_i, and the pull."""
        return Gradient(shift=-self.alpha * state[OWN], pull=self.alpha)

    def change(self, state: State, update: Array) -> Array:
        """-u_i; nothing is broadcast."""
        return -update

    def stepped(self, state: State, step: Step) -> tuple[Vector, State]:
        """Go on by -h / alpha."""
        model, after = super().stepped(state, step)
        own: Vector = after[SUM]
        return model - own / np.float32(step.mean.owners), after
