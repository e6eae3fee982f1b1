"""Elastic models: a ring's step is the mean of those who train it, shrunk by how few they are.

Everybody sends the whole vector, with zeros where nothing was trained, so no vector tells by its length what device it
came from. Legend: R rings, counted from 1 here; d parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import BrokenRule, ImplausibleSum, WireError
from agfl_models.model.config import ModelConfig
from agfl_protocol.methods import ring_losses
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.methods.method import ArraySpec, Local, Method, Round, Specs, State, States
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.update import Mean, Total, Update, Vector

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

TIER, TRAINED = "tier", "trained"
BY_TIER = "by_tier"

_TIER, _HOLDERS, _WEIGHT = "rings/tier_", "rings/holders_", "rings/weight_"


def names(num_rings: int) -> tuple[str, ...]:
    """Return the names of the sums that `Elastic.encode` adds."""
    outer = range(2, num_rings + 1)
    tiers = (_TIER + str(k) for k in range(1, num_rings + 1))
    return (*tiers, *(_HOLDERS + str(k) for k in outer), *(_WEIGHT + str(k) for k in outer))


@dataclass(frozen=True)
class Elastic(Method):
    """Comes after weighting. ring: uint8 (d,), from 0; shrinkage: lambda.

    A posterior mean: the fewer owners a ring has been moved by, the less their mean is to be believed.
    Broadcast: `by_tier`: how many rings an owner of each tier trains and evaluates, never more than it holds, (R,).
    State of a client: `tier`: of this owner; `trained`: how many rings it trained. One that diverged is of its tier,
    but trained no outer ring. State of the server: `by_tier`, and what `ring_plan` keeps of growth.
    """

    name = "elastic"
    ring: NDArray[np.uint8]
    num_rings: int
    shrinkage: float

    @classmethod
    def of(cls, round_: Round) -> Elastic | None:
        """Where the model is elastic."""
        if round_.rings is None:
            return None
        own = round_.config.elastic if round_.config is not None else None
        shrinkage = 0.0 if own is None else own.shrinkage  # the server's own
        return Elastic(round_.rings.ring, round_.plan.max_rings, shrinkage)

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """Refuse what it cannot go with: a model that is not made of layers, owners' states, sums by group."""
        if plan.elastic is None:
            return
        if not isinstance(plan.model, ModelConfig):
            raise BrokenRule(
                "AGFL-CONFIG-169", f"elastic: needs a model made of layers, got model.family {plan.model.family}"
            )
        if plan.aggregation.group_rule != "mean":
            raise BrokenRule(
                "AGFL-CONFIG-170", f"elastic: needs aggregation.group_rule mean, got {plan.aggregation.group_rule}"
            )
        sizes = [plan.narrowed_model(k).num_parameters() for k in range(1, plan.max_rings + 1)]
        if any(a >= b for a, b in pairwise(sizes)):
            raise BrokenRule(
                "AGFL-CONFIG-171", f"elastic.widths: must make models of different size, got {sizes} parameters"
            )

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """How many rings each tier trains."""
        return {} if plan.elastic is None else {BY_TIER: ArraySpec("uint8", (plan.max_rings,), 1, plan.max_rings)}

    @staticmethod
    def refuse_arrays(plan: ClientPlan, arrays: State) -> None:
        """No tier trains more rings than it holds."""
        rings = arrays[BY_TIER].tolist()
        if any(number > tier for tier, number in enumerate(rings, start=1)):
            raise WireError("AGFL-WIRE-016", f"elastic/by_tier: the i-th number must be in [1, i], got {rings}")

    @staticmethod
    def refuse_exact(plan: ClientPlan, arrays: State) -> None:
        """Two ways to cut a model among tiers differ by one's owners, but where tiers just join the one below."""
        rings = arrays[BY_TIER].tolist() if arrays else [1]
        if plan.aggregation.type == "secure" and rings != [min(t, max(rings)) for t in range(1, len(rings) + 1)]:
            rule = "must be 1, 2, ... up to some ring in an exact sum"
            raise PlanViolation("AGFL-PLAN-009", f"elastic/by_tier: {rule}, got {tuple(rings)}")

    @property
    def sums(self) -> tuple[str, ...]:
        """Owners of each tier, and of each outer ring its owners and their weight."""
        return names(self.num_rings)

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """The loss with each outer ring and without it."""
        return ring_losses.names(self.num_rings)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Each owner is one, of weight 1 at most."""
        return dict.fromkeys(self.sums, 1.0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of each ring from the second on: owners that trained it, and its gain."""
        return tuple(f"rings/{what}_{k}" for k in range(2, self.num_rings + 1) for what in ("owners", "gain"))

    def observe(self, local: Local) -> State:
        """Of which tier the owner is, and how many rings it trains."""
        return {TIER: np.array([local.tier]), TRAINED: np.array([local.num_rings])}

    def observe_eval(self, local: Local, max_examples: int) -> Mapping[str, float]:
        """What each ring that this owner holds is worth to it."""
        losses, predictions = local.losses_by_ring(max_examples, "rings")
        return ring_losses.sums(losses, predictions, self.num_rings)

    def initial_state(self, model: Vector) -> State:
        """Nobody knows yet how many owners hold more than the first ring."""
        return {BY_TIER: np.ones(self.num_rings, np.uint8)}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """What was planned; an exchange may have failed because too few who hold a ring were left: then the first."""
        return {BY_TIER: np.ones(self.num_rings, np.uint8) if is_retry else state[BY_TIER]}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Add to the sum of which tier the owner is, which rings it trained, and its weight on each."""
        metrics, tier = dict(update.metrics), int(state[TIER][0])
        trained = 1 if metrics[DIVERGED] else int(state[TRAINED][0])
        for k in range(1, self.num_rings + 1):
            metrics[_TIER + str(k)] = float(tier == k)
        for k in range(2, self.num_rings + 1):
            holds = float(trained >= k)
            metrics |= {_HOLDERS + str(k): holds, _WEIGHT + str(k): holds * update.weight}
        return replace(update, metrics=metrics)

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Scale each ring's sum so that division by the whole weight W makes it sum / (C + lambda (W - C))."""
        covered = [total.weight, *(total.metrics[_WEIGHT + str(k)] for k in range(2, self.num_rings + 1))]
        factors = [total.weight / (c + self.shrinkage * (total.weight - c)) if c else 0.0 for c in covered]
        return replace(total, delta=total.delta * np.array(factors, total.delta.dtype)[self.ring]), state

    def check(self, total: Total) -> None:
        """Each client is of one tier."""
        owners = sum(total.metrics[_TIER + str(k)] for k in range(1, self.num_rings + 1))
        if owners != total.count:
            raise ImplausibleSum("AGFL-ROUND-004", f"rings: tiers must add up to {total.count} clients, got {owners:g}")

    def row(self, mean: Mean) -> Mapping[str, float]:
        """How many owners trained each ring."""
        owners = holders(mean.metrics, self.num_rings)
        return {f"rings/owners_{k}": count for k, count in enumerate(owners, start=2)}

    def eval_row(self, sums: Mapping[str, float]) -> Mapping[str, float | None]:
        """What each ring is worth."""
        found = ring_losses.ring_losses(sums, self.num_rings)
        return {f"rings/gain_{k}": None if loss is None else loss.gain for k, loss in enumerate(found, start=2)}


def rings_by_tier(arrays: States) -> tuple[int, ...]:
    """Return how many rings owners of each tier train, of what was broadcast; (1,) where a model is not elastic."""
    own = arrays.get(Elastic.name)
    return (1,) if own is None else tuple(own[BY_TIER].tolist())


def tiers(metrics: Mapping[str, float], num_rings: int) -> list[int]:
    """Return how many owners in the sum are of each tier, the narrowest first."""
    return [round(metrics[_TIER + str(k)]) for k in range(1, num_rings + 1)]


def holders(metrics: Mapping[str, float], num_rings: int) -> list[int]:
    """Return how many owners trained each ring from the second on."""
    return [round(metrics[_HOLDERS + str(k)]) for k in range(2, num_rings + 1)]


def count_opened(metrics: Mapping[str, float], num_rings: int, min_cohort: int) -> int:
    """Return how many rings, from the first on, at least `min_cohort` owners trained; the first all did."""
    opened = 1
    for count in holders(metrics, num_rings):
        if count < min_cohort:
            break
        opened += 1
    return opened
