"""Weighting by alignment: who moves as the federation did counts more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.methods.method import ArraySpec, Local, Method, Round, Specs, State, Step
from agfl_protocol.methods.weighting import Weighting, refuse_without
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.update import Total, Update, Vector, inner_product, square_sum

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

PREVIOUS, START = "previous", "start"
_MAX_EXPONENT = math.log(3)


@dataclass(frozen=True)
class AlignmentWeighting(Method):
    """Multiply the weight by exp(kappa cos(delta_i, x_t - x_{t-1})), within [1/3, 3]; then as `weighting`.

    Ours, in place of weights that the server would learn from single updates (FedAWA, FedLAW): it needs nothing but
    what was broadcast and the owner's own update. The cap of `weighting` bounds the product.
    State: `previous`: the model before this one, (d,); empty before the first step.
    """

    name = "alignment"
    weighting: Weighting
    kappa: float

    @classmethod
    def of(cls, round_: Round) -> AlignmentWeighting | None:
        """By alignment."""
        aggregation = round_.plan.aggregation
        if aggregation.weighting != "alignment":
            return None
        return AlignmentWeighting(Weighting(round_.plan.max_weight), aggregation.alignment_kappa)

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """Refuse its settings without it."""
        refuse_without(plan, "alignment", "alignment_kappa")

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """The model before this one; none before the first step."""
        is_asked = train and plan.aggregation.weighting == "alignment"
        return {PREVIOUS: ArraySpec("float32", (0, size))} if is_asked else {}

    @staticmethod
    def refuse_exact(plan: ClientPlan, arrays: State) -> None:
        """Weights follow from a direction that the server chooses."""
        if plan.aggregation.type == "secure" and plan.aggregation.weighting == "alignment":
            raise PlanViolation(
                "AGFL-PLAN-007", "aggregation.weighting: must not be alignment in an exact sum, where it picks owners"
            )

    def observe(self, local: Local) -> State:
        """The model from which the owner trains."""
        return {START: local.models[0]}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Scale gain and weight."""
        previous = state[PREVIOUS]
        with np.errstate(over="ignore", invalid="ignore"):  # the server made both models up
            alignment = cosine(update.delta, state[START] - previous) if previous.size else 0.0
        exponent = min(max(self.kappa * alignment, -_MAX_EXPONENT), _MAX_EXPONENT)
        return self.weighting.encode(replace(update, weight=update.weight * math.exp(exponent)), state, rng)

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Turn the sum of weighted deltas into their mean."""
        return self.weighting.decode(total, state)

    def initial_state(self, model: Vector) -> State:
        """There is no model before the first one."""
        return {PREVIOUS: model[:0]}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """The model before this one."""
        return state if train else {}

    def stepped(self, state: State, step: Step) -> tuple[Vector, State]:
        """The model from which the step was."""
        return step.after, {PREVIOUS: step.before}

    def restarted(self, state: State) -> State:
        """A model that was given up shows no way."""
        return {PREVIOUS: state[PREVIOUS][:0]}


def cosine(delta: NDArray[np.floating[Any]], way: NDArray[np.floating[Any]]) -> float:
    """Return the cosine of two vectors (d,), to six digits; 0 where one of them is zero, or it is beyond numbers."""
    norms = math.sqrt(square_sum(delta)) * math.sqrt(square_sum(way))
    found = inner_product(delta, way) / norms if norms > 0 else 0.0
    return found if math.isfinite(found) else 0.0
