"""Weighting by loss: the owners whom the model serves worst count most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agfl_models.errors import BrokenRule
from agfl_protocol.messages.header import RESOLUTION, as_it_travels
from agfl_protocol.methods.method import Method, Round, State
from agfl_protocol.methods.weighting import refuse_without
from agfl_protocol.update import Total, Update

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

CURVATURE = "fairness/curvature"
MIN_WEIGHT = 1 / 16  # of the largest: else a sum could be made the update of the one owner with the largest loss


@dataclass(frozen=True)
class FairWeighting(Method):
    """q-FedAvg: Li et al. 2020, arXiv:1905.10497, Algorithm 2, in place of `Weighting`.

    With F_i = loss / max_loss, at most 1, the server steps along sum(F_i^q delta_i) / sum(F_i^q + q L F_i^(q-1)
    |delta_i|^2 / max_loss), which is the paper's with numerator and denominator divided by L max_loss^q. L is
    `lipschitz`, in the paper 1 / lr. `max_loss` is public and caps what one owner can weigh; a smaller loss counts as
    no less than that of weight `MIN_WEIGHT`.
    """

    name = "fair_weighting"
    q: float
    lipschitz: float
    max_loss: float

    @classmethod
    def of(cls, round_: Round) -> FairWeighting | None:
        """By the loss."""
        aggregation = round_.plan.aggregation
        if aggregation.weighting != "loss":
            return None
        return FairWeighting(aggregation.fairness_q, 1 / round_.plan.training.optimizer.lr, aggregation.max_loss)

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """Its sum is a step already, which no other rule can make a mean of."""
        aggregation = plan.aggregation
        refuse_without(plan, "loss", "fairness_q", "max_loss")
        if aggregation.weighting != "loss":
            return
        schedule = plan.training.schedule
        if schedule is not None:
            rule = "must be left out with aggregation.weighting loss, whose L is 1 / lr"
            raise BrokenRule("AGFL-CONFIG-261", f"training.schedule: {rule}, got {schedule.type}")
        if aggregation.averaging != "mean":
            raise BrokenRule(
                "AGFL-CONFIG-172", f"aggregation.weighting: loss needs averaging mean, got {aggregation.averaging}"
            )
        if aggregation.group_rule != "mean":
            raise BrokenRule(
                "AGFL-CONFIG-173", f"aggregation.weighting: loss needs group_rule mean, got {aggregation.group_rule}"
            )

    @property
    def sums(self) -> tuple[str, ...]:
        """What the denominator has beside the weight."""
        return (CURVATURE,)

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Scale the gain by F_i^q; add the metric `fairness/curvature`, the other summand of the denominator."""
        least = max(MIN_WEIGHT ** (1 / self.q), 1 / RESOLUTION) if self.q > 0 else 1.0
        share = min(max(update.loss / self.max_loss, least), 1.0)
        weight = as_it_travels(share**self.q if update.weight > 0 else 0.0)
        curvature = self.q * self.lipschitz * weight * update.norm**2 / (share * self.max_loss)
        metrics = {**update.metrics, CURVATURE: curvature}
        return replace(update, gain=update.gain * weight, weight=weight, metrics=metrics)

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Turn the sum into the step."""
        denominator = total.weight + total.metrics[CURVATURE]
        return replace(total, delta=total.delta / total.delta.dtype.type(denominator)), state
