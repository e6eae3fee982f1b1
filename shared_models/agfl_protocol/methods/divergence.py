"""Divergence: what is not finite adds nothing to a sum, but one to the number of owners whose numbers ran away.

To refuse it would answer the server, of this owner alone and before any mask, a question about the owner's text: the
server makes up the model and the configuration under which they run away.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from agfl_protocol.methods.drift import LOST
from agfl_protocol.update import Update

DIVERGED = "diverged"


def without_divergence(update: Update) -> Update:
    """Return the update with the metric `diverged`: 0, or 1 where it is replaced by one that adds nothing.

    A metric beyond its room in the header is none of these: what there is room for follows from the broadcast, which
    would decide who adds something. Such an owner is of its tier, but trained no outer ring. Where all
    owners weigh alike it counts as one that stood still, so that the mean times their number stays the sum, from which
    SCAFFOLD's server knows the states; that an owner has lost its state is told in any case.
    """
    derived = update.norm, update.weight, update.loss, update.steps, update.alignment
    if all(map(math.isfinite, derived)) and all(map(_is_metric, update.metrics.values())):
        return replace(update, metrics={**update.metrics, DIVERGED: 0.0})
    kept = {name: value if name == LOST else 0.0 for name, value in update.metrics.items()}
    return Update(np.zeros_like(update.delta), 0.0, {**kept, DIVERGED: 1.0}, tier=update.tier)


def _is_metric(value: float) -> bool:
    return math.isfinite(value) and value >= 0
