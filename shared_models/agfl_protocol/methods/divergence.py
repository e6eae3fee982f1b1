"""Divergence: what is not finite adds nothing to a sum, but one to the number of owners whose numbers ran away.

To refuse it would answer the server, of this owner alone and before any mask, a question about the owner's text: the
server makes up the model and the configuration under which they run away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from agfl_protocol.methods.method import Method, Round, State
from agfl_protocol.update import Update

DIVERGED = "diverged"


@dataclass(frozen=True)
class Divergence(Method):
    """Of every round, also of one that only evaluates.

    A metric beyond its room in the header is no divergence: what there is room for follows from the broadcast, which
    would decide who adds something. Where all owners weigh alike, one that diverged counts as one that stood still, so
    that the mean times their number stays the sum, from which SCAFFOLD's server knows the states.
    """

    name = "divergence"

    @classmethod
    def of(cls, round_: Round) -> Divergence:
        """Always."""
        return Divergence()

    @property
    def sums(self) -> tuple[str, ...]:
        """How many owners' numbers ran away."""
        return (DIVERGED,)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Each owner is one."""
        return {DIVERGED: 1.0}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Add the metric `diverged`: 0, or 1 where the update is replaced by one that adds nothing."""
        derived = update.norm, update.weight, update.loss, update.steps
        if all(map(math.isfinite, derived)) and all(map(_is_metric, update.metrics.values())):
            return replace(update, metrics={**update.metrics, DIVERGED: 0.0})
        nothing = dict.fromkeys(update.metrics, 0.0) | {DIVERGED: 1.0}
        return Update(np.zeros_like(update.delta), 0.0, nothing)


def _is_metric(value: float) -> bool:
    return math.isfinite(value) and value >= 0
