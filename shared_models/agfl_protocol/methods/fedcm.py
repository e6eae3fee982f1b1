"""FedCM: the direction in which the federation moved last is mixed into every local step, so clients drift less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from agfl_models.bounded import Factor
from agfl_models.errors import BrokenRule
from agfl_protocol.methods.method import (
    ArraySpec,
    Gradient,
    Method,
    MethodConfig,
    Round,
    Specs,
    State,
    Step,
)
from agfl_protocol.methods.owner_states.scaffold import refuse_unequal_steps
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.update import Mean, Update, Vector, inner_product

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

MOMENTUM = "momentum"
_WITH = "fedcm/with"
AGREEMENT = "fedcm/agreement"


class FedCMConfig(MethodConfig):
    """alpha: share of an owner's own gradient in each local step; 1 is FedAvg."""

    type: Literal["fedcm"]
    alpha: Annotated[Factor, Field(le=1)] = 0.1
    is_chosen = True


@dataclass(frozen=True)
class FedCM(Method):
    """Xu et al. 2021, arXiv:2106.10874, Algorithm 2: the local step is -lr (alpha g + (1 - alpha) Delta_t).

    Delta_t is the mean of what owners moved in the last round, over -K lr: the paper's, and zero before the first. The
    server keeps and broadcasts -K lr Delta_t, in the unit of an update. The sum says how many owners' updates go with
    it, one vote each, which does not depend on how large they are.
    reach: K lr, of all clients the same. State: `momentum`: -K lr Delta_t, (d,).
    """

    name = "fedcm"
    config = FedCMConfig
    alpha: float
    reach: float

    @classmethod
    def of(cls, round_: Round) -> FedCM | None:
        """Where the run says so."""
        config, training = round_.plan.method(FedCMConfig), round_.plan.training
        if config is None:
            return None
        assert training.local_steps is not None
        return FedCM(config.alpha, training.local_steps * training.optimizer.lr)

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """All must take the same steps; nothing else may correct the same gradients."""
        if plan.method(FedCMConfig) is None:
            return
        refuse_unequal_steps(plan, "methods fedcm")
        if plan.aggregation.weighting == "loss":  # of which the sum is a step, and no mean of what owners moved
            raise BrokenRule("AGFL-CONFIG-216", "aggregation.weighting: must not be loss with methods fedcm")
        if plan.keeps_state:
            rule = "methods: fedcm cannot go with owners' state (scaffold, feddyn), got both"
            raise BrokenRule("AGFL-CONFIG-213", rule)

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """The momentum."""
        is_asked = train and plan.method(FedCMConfig) is not None
        return {MOMENTUM: ArraySpec("float32", (size,))} if is_asked else {}

    @staticmethod
    def refuse_exact(plan: ClientPlan, arrays: State) -> None:
        """Votes on directions that the server makes up tell the same updates apart, one after the other."""
        if plan.aggregation.type == "secure" and plan.method(FedCMConfig) is not None:
            line = "methods: fedcm must not be in an exact sum, where votes on made-up directions tell of owners"
            raise PlanViolation("AGFL-PLAN-022", line)

    @property
    def sums(self) -> tuple[str, ...]:
        """Owners whose update goes with the momentum."""
        return (_WITH,)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Each owner is one."""
        return {_WITH: 1.0}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The share of them."""
        return (AGREEMENT,)

    def gradient(self, state: State) -> Gradient:
        """alpha g + (1 - alpha) Delta_t."""
        return Gradient(self.alpha, -((1 - self.alpha) / self.reach) * state[MOMENTUM])

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Say whether the update goes with the momentum."""
        with np.errstate(over="ignore", invalid="ignore"):  # the server made the momentum up
            goes_with = inner_product(update.delta, state[MOMENTUM]) > 0
        return replace(update, metrics={**update.metrics, _WITH: float(goes_with)})

    def initial_state(self, model: Vector) -> State:
        """No direction yet."""
        return {MOMENTUM: np.zeros_like(model)}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """The momentum."""
        return state if train else {}

    def stepped(self, state: State, step: Step) -> tuple[Vector, State]:
        """The mean update is the next momentum."""
        return step.after, {MOMENTUM: step.mean.delta}

    def restarted(self, state: State) -> State:
        """A direction that led to a model that was given up is none."""
        return self.initial_state(state[MOMENTUM])

    def row(self, mean: Mean) -> Mapping[str, float]:
        """How many go with the momentum."""
        return {AGREEMENT: mean.metrics[_WITH] / mean.count}
