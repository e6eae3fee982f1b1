"""The header of the summed vector: count, weight and metric sums, each an integer in a lane of its own.

Whatever the server wants to know of a client beside its delta is one more number here, hence exactly as private as
the delta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from agfl_models.errors import ImplausibleSum, WireError
from agfl_protocol.secagg.lanes import Lanes

RESOLUTION = 2**20  # fixed point: a metric of 1.0 is 2^20


def as_it_travels(weight: float) -> float:
    """Return a weight in [0, 1] as the header will say it, > 0: the delta is to be scaled by just that."""
    return max(1, round(weight * RESOLUTION)) / RESOLUTION


@dataclass(frozen=True)
class Header:
    """Names of the metric sums, in the order in which they travel, after count and weight.

    limits: what one honest client's metric is at most, where that follows from the broadcast.
    """

    metrics: tuple[str, ...]
    max_cohort: int
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of lanes."""
        return 2 + len(self.metrics)

    def encode(self, weight: float, values: Mapping[str, float]) -> Lanes:
        """Return one client's header lanes (size,): its count is 1. A metric beyond its room counts as the most of it.

        Raises:
            WireError: a metric is missing or unknown. No value of one is an error: an answer must not tell of it.
        """
        if set(values) != set(self.metrics):
            odd = sorted(set(values) ^ set(self.metrics))
            raise WireError("AGFL-WIRE-026", f"metrics: must be exactly those of the round's header, differ in {odd}")
        known = [value if (value := values[name]) < self.room else self.room for name in self.metrics]  # NaN too
        lanes = [min(round(value * RESOLUTION), self._bound - 1) for value in known]
        return np.array([1, round(as_it_travels(weight) * RESOLUTION), *lanes], np.uint64)

    def check(self, lanes: Lanes) -> None:
        """Check the header lanes (size,) that one client sent in the open.

        Raises:
            WireError: a count other than 1, a weight outside (0, 1], or a metric that could make the sum overflow.
        """
        count, weight, *metrics = (int(lane) for lane in lanes)
        if count != 1:
            raise WireError("AGFL-WIRE-027", f"count: must be 1, got {count}")
        if not 1 <= weight <= RESOLUTION:
            raise WireError("AGFL-WIRE-028", f"weight: must be in (0, 1], got {weight / RESOLUTION}")
        for name, value in zip(self.metrics, metrics, strict=True):
            if value >= self._bound:
                raise WireError(
                    "AGFL-WIRE-029",
                    f"metric {name}: must be below {self._bound / RESOLUTION:g}, got {value / RESOLUTION:g}",
                )
            if name in self.limits and value > math.ceil(self.limits[name] * RESOLUTION):
                raise WireError(
                    "AGFL-WIRE-030", f"metric {name}: must be at most {self.limits[name]:g}, got {value / RESOLUTION:g}"
                )

    @property
    def room(self) -> float:
        """What one client's metric must be below."""
        return float(self._bound // RESOLUTION)

    @property
    def _bound(self) -> int:
        """A metric's integer stays below this, so that the sum over the cohort stays below 2^63."""
        return 2**63 // self.max_cohort

    def decode(self, lanes: Lanes) -> tuple[int, float, dict[str, float]]:
        """Return (number of clients, summed weight, metric sums) of summed header lanes (size,).

        Raises:
            ImplausibleSum: no clients within their bounds can have this sum, so that one of them lied.
        """
        count, *numbers = (int(lane) for lane in lanes)
        if not count <= numbers[0] <= count * RESOLUTION:
            lie = numbers[0] / RESOLUTION
            raise ImplausibleSum(
                "AGFL-ROUND-006", f"weight: the sum must be in (0, {count}] over {count} clients, got {lie:g}: one lied"
            )
        for name, number in zip(self.metrics, numbers[1:], strict=True):
            if number >= 2**63:
                raise ImplausibleSum(
                    "AGFL-ROUND-007", f"metric {name}: the sum must be below {2**63 / RESOLUTION:g}: a client lied"
                )
            if name in self.limits and number > (limit := count * self.limits[name]) * RESOLUTION:
                got = number / RESOLUTION
                raise ImplausibleSum(
                    "AGFL-ROUND-008",
                    f"metric {name}: the sum must be at most {limit:g} over {count} clients, got {got:g}",
                )
        weight, *values = (number / RESOLUTION for number in numbers)
        return count, weight, dict(zip(self.metrics, values, strict=True))
