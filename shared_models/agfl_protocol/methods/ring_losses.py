"""What each ring is worth: the validation loss with it and without it, as sums over the same owners, those who hold it.

Legend: R rings, counted from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agfl_protocol.methods.candidates import bounded

_WITH, _WITHOUT, _PREDICTIONS = "rings/with_", "rings/without_", "rings/predictions_"


class RingLoss(NamedTuple):
    """Mean loss a prediction of the model up to a ring, and of the model up to the one before."""

    with_ring: float
    without: float

    @property
    def gain(self) -> float:
        """Share of the loss that the ring takes away."""
        return 1 - self.with_ring / self.without if self.without > 0 else 0.0


def names(num_rings: int) -> tuple[str, ...]:
    """Return the names of the sums that an evaluation of a model with R rings has."""
    outer = range(2, num_rings + 1)
    return tuple(prefix + str(k) for prefix in (_WITH, _WITHOUT, _PREDICTIONS) for k in outer)


def sums(losses: Sequence[float], num_predictions: int, num_rings: int) -> dict[str, float]:
    """Return what one owner adds; losses: summed over its examples, at each width that it holds."""
    found = dict.fromkeys(names(num_rings), 0.0)
    known = [bounded(loss, num_predictions) for loss in losses]
    for k in range(2, len(known) + 1):
        number = str(k)
        found |= {_WITH + number: known[k - 1], _WITHOUT + number: known[k - 2]}
        found[_PREDICTIONS + number] = float(num_predictions)
    return found


def ring_losses(metrics: Mapping[str, float], num_rings: int) -> list[RingLoss | None]:
    """Return the losses of each ring from the second on; None where nobody held it."""
    found: list[RingLoss | None] = []
    for number in map(str, range(2, num_rings + 1)):
        count = metrics.get(_PREDICTIONS + number, 0.0)
        own = metrics.get(_WITH + number, 0.0), metrics.get(_WITHOUT + number, 0.0)
        found.append(RingLoss(own[0] / count, own[1] / count) if count else None)
    return found
