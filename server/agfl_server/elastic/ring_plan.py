"""Which rings of an elastic model are trained: as many owners as it takes to hide each, and no more than pays.

The server knows how many owners are of each tier, from a sum, and never which. Legend: R rings, counted from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from agfl_protocol.config.elastic_config import ElasticConfig, GrowthConfig
from agfl_protocol.methods import elastic
from agfl_protocol.methods.method import State
from agfl_protocol.methods.ring_losses import RingLoss, ring_losses

_OPEN, _BEST_LOSS, _WAITED, _IS_FINAL = "open", "best_loss", "waited", "is_final"


@dataclass(frozen=True)
class RingState:
    """What the server carries from round to round about the rings of its model.

    by_tier: how many rings an owner of each tier trains in the next round, (R,). open: the rings that may be trained.
    best_loss: least validation loss so far; waited: evaluations since then; is_final: the model has stopped growing.
    """

    by_tier: tuple[int, ...]
    open: int
    best_loss: float | None = None
    waited: int = 0
    is_final: bool = False

    @staticmethod
    def of(config: ElasticConfig) -> RingState:
        """The state before round 1, when nobody knows how many owners hold more than the first ring."""
        num_rings = len(config.widths)
        return RingState((1,) * num_rings, num_rings if config.growth is None else 1, is_final=config.growth is None)

    @staticmethod
    def read(state: State, config: ElasticConfig) -> RingState:
        """Return what `written` wrote; the state before round 1 where it wrote nothing yet."""
        if _OPEN not in state:
            return RingState.of(config)
        best_loss = state[_BEST_LOSS].tolist()
        return RingState(
            by_tier=tuple(state[elastic.BY_TIER].tolist()),
            open=int(state[_OPEN][0]),
            best_loss=best_loss[0] if best_loss else None,
            waited=int(state[_WAITED][0]),
            is_final=bool(state[_IS_FINAL][0]),
        )

    @property
    def written(self) -> State:
        """As the state of `Elastic`."""
        return {
            elastic.BY_TIER: np.array(self.by_tier, np.uint8),
            _OPEN: np.array([self.open]),
            _BEST_LOSS: np.array([] if self.best_loss is None else [self.best_loss], np.float64),
            _WAITED: np.array([self.waited]),
            _IS_FINAL: np.array([int(self.is_final)]),
        }


def plan_rings(tiers: Sequence[int], min_cohort: int, num_open: int) -> tuple[int, ...]:
    """Return how many rings an owner of each tier trains, (R,), given how many owners are of each, (R,).

    Owners that train as many rings as each other are a group, and no group may have 1 to `min_cohort` - 1 owners: of a
    smaller one the server would learn the sum of its weights, or of its updates to a ring. Where tiers are too small
    they join the group below, hence train less than they could. Of all plans that hold, it is that of most training.
    """
    levels = range(2, min(num_open, len(tiers)) + 1)
    best, most = (1,) * len(tiers), sum(tiers)
    for count in range(1, len(levels) + 1):
        for chosen in combinations(levels, count):
            plan = tuple(max(level for level in (1, *chosen) if level <= tier) for tier in range(1, len(tiers) + 1))
            trained = sum(rings * owners for rings, owners in zip(plan, tiers, strict=True))
            if trained > most and _hides(plan, tiers, min_cohort):
                best, most = plan, trained
    return best


def _hides(plan: Sequence[int], tiers: Sequence[int], min_cohort: int) -> bool:
    groups = dict.fromkeys(plan, 0)
    for rings, owners in zip(plan, tiers, strict=True):
        groups[rings] += owners
    return all(owners == 0 or owners >= min_cohort for owners in groups.values())


def after_round(
    state: RingState, config: ElasticConfig, metrics: Mapping[str, float], loss: float | None, min_cohort: int
) -> RingState:
    """Return the state after a round with these sums; loss: of validation, where the round evaluated."""
    if config.growth is not None and loss is not None and not state.is_final:
        state = _grown(state, config.growth, loss, ring_losses(metrics, len(config.widths)))
    tiers = elastic.tiers(metrics, len(config.widths))
    return replace(state, by_tier=plan_rings(tiers, min_cohort, state.open))


def _grown(state: RingState, config: GrowthConfig, loss: float, rings: Sequence[RingLoss | None]) -> RingState:
    """Open the next ring where the loss stalls; close the last one, for good, where it was not worth it."""
    if state.best_loss is None or loss < state.best_loss * (1 - config.min_gain):
        return replace(state, best_loss=loss, waited=0)
    if state.waited + 1 < config.patience:
        return replace(state, waited=state.waited + 1)
    last = rings[state.open - 2] if state.open > 1 else None
    if last is not None and last.gain < config.min_gain:
        return replace(state, open=state.open - 1, waited=0, is_final=True)
    if state.open == len(rings) + 1:
        return replace(state, is_final=True)
    return replace(state, open=state.open + 1, waited=0)
