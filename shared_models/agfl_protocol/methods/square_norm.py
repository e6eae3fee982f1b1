"""How large the clients' updates are, beside how large their mean is: what FedExP's step size is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from agfl_models.errors import BrokenRule
from agfl_protocol.methods.method import Method, MethodConfig, Round, State
from agfl_protocol.update import Total, Update

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

SQUARE_NORM = "update/square_norm"
_WITH = "server_optimizer fedexp"


class SquareNormConfig(MethodConfig):
    """Has no settings."""

    type: Literal["square_norm"]


@dataclass(frozen=True)
class SquareNorm(Method):
    """Add w_i * |delta_i|^2 to the sum; comes after weighting. The server gets sum(p_i * |delta_i|^2)."""

    name = "square_norm"
    config = SquareNormConfig

    @classmethod
    def of(cls, round_: Round) -> SquareNorm | None:
        """Where the server steps by it."""
        return None if round_.plan.method(SquareNormConfig) is None else SquareNorm()

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """It squares whole updates, of which the server must make a plain mean."""
        aggregation = plan.aggregation
        if plan.method(SquareNormConfig) is None:
            return
        if aggregation.averaging != "mean":
            raise BrokenRule(
                "AGFL-CONFIG-181", f"aggregation.averaging: must be mean with {_WITH}, got {aggregation.averaging}"
            )
        if aggregation.weighting == "loss":
            raise BrokenRule("AGFL-CONFIG-182", f"aggregation.weighting: must not be loss with {_WITH}")
        if aggregation.group_rule != "mean":
            raise BrokenRule(
                "AGFL-CONFIG-183", f"aggregation.group_rule: must be mean with {_WITH}, got {aggregation.group_rule}"
            )

    @property
    def sums(self) -> tuple[str, ...]:
        """Weighted squares."""
        return (SQUARE_NORM,)

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Add the metric `update/square_norm`."""
        # The gain has the weight in it, which a square has twice.
        return replace(update, metrics={**update.metrics, SQUARE_NORM: update.norm**2 / update.weight})

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Turn the sum into the mean."""
        mean = total.metrics[SQUARE_NORM] / total.weight
        return replace(total, metrics={**total.metrics, SQUARE_NORM: mean}), state
