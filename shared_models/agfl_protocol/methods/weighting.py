"""Weighting: the mean is sum(w_i * delta_i) / sum(w_i), both summed in the same vector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agfl_models.errors import BrokenRule
from agfl_protocol.messages.header import as_it_travels
from agfl_protocol.methods.method import Method, Round, State
from agfl_protocol.update import Total, Update

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan


@dataclass(frozen=True)
class Weighting(Method):
    """Multiply by w / max_weight on the client, divide by the summed weight on the server.

    `max_weight` is public: it caps what one owner can weigh and bounds the fixed-point range. `uniform` gives every
    client weight 1. Source: the weighted mean of McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.
    """

    name = "weighting"
    max_weight: float
    uniform: bool = False

    @classmethod
    def of(cls, round_: Round) -> Weighting | None:
        """By predictions, or alike."""
        weighting = round_.plan.aggregation.weighting
        if weighting not in ("tokens", "uniform"):
            return None
        return Weighting(round_.plan.max_weight, weighting == "uniform")

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Scale gain and weight into units of `max_weight`."""
        share = 1.0 if self.uniform else min(update.weight / self.max_weight, 1.0)
        weight = as_it_travels(share)
        return replace(update, gain=update.gain * weight, weight=weight)

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Turn the sum of weighted deltas into their mean."""
        return replace(total, delta=total.delta / total.delta.dtype.type(total.weight)), state


def refuse_without(plan: ClientPlan, weighting: str, *fields: str) -> None:
    """Raise BrokenRule where a field of `aggregation` is set that only another weighting reads."""
    aggregation = plan.aggregation
    for field in fields:
        value = getattr(aggregation, field)
        if value != type(aggregation).model_fields[field].default and aggregation.weighting != weighting:
            got = f"{value} with weighting {aggregation.weighting}"
            raise BrokenRule("AGFL-CONFIG-184", f"aggregation.{field}: needs weighting {weighting}, got {got}")
