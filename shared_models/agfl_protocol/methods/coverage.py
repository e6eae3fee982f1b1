"""Coverage: a ring's step is the mean of those who train it, shrunk by how few they are.

Everybody sends the whole vector, with zeros where nothing was trained, so no vector tells by its length what device it
came from. Legend: R rings, counted from 1 here; d parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.update import Total, Update

_TIER, _HOLDERS, _WEIGHT = "rings/tier_", "rings/holders_", "rings/weight_"


def names(num_rings: int) -> tuple[str, ...]:
    """Return the names of the sums that `Coverage.encode` adds to the header."""
    outer = range(2, num_rings + 1)
    tiers = (_TIER + str(k) for k in range(1, num_rings + 1))
    return (*tiers, *(_HOLDERS + str(k) for k in outer), *(_WEIGHT + str(k) for k in outer))


def is_tier(name: str) -> bool:
    """Whether a sum is that of the owners of one tier."""
    return name.startswith(_TIER)


@dataclass(frozen=True)
class Coverage:
    """Comes after weighting. ring: uint8 (d,), from 0; shrinkage: lambda.

    A posterior mean: the fewer owners a ring has been moved by, the less their mean is to be believed.
    """

    ring: NDArray[np.uint8]
    num_rings: int
    shrinkage: float

    def encode(self, update: Update) -> Update:
        """Add to the sum of which tier the owner is, which rings it trained, and its weight on each."""
        metrics = dict(update.metrics)
        for k in range(1, self.num_rings + 1):
            metrics[_TIER + str(k)] = float(update.tier == k)
        for k in range(2, self.num_rings + 1):
            holds = float(update.num_rings >= k)
            metrics |= {_HOLDERS + str(k): holds, _WEIGHT + str(k): holds * update.weight}
        return replace(update, metrics=metrics)

    def decode(self, total: Total) -> Total:
        """Scale each ring's sum so that division by the whole weight W makes it sum / (C + lambda (W - C))."""
        covered = [total.weight, *(total.metrics[_WEIGHT + str(k)] for k in range(2, self.num_rings + 1))]
        factors = [total.weight / (c + self.shrinkage * (total.weight - c)) if c else 0.0 for c in covered]
        return replace(total, delta=total.delta * np.array(factors, total.delta.dtype)[self.ring])


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
