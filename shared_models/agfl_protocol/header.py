"""The header of the summed vector: count, weight and metric sums, each an integer in a lane of its own.

Whatever the server wants to know of a client beside its delta is one more number here, hence exactly as private as
the delta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agfl_models.errors import WireError
from agfl_protocol.update import Lanes

RESOLUTION = 2**20  # fixed point: a metric of 1.0 is 2^20


@dataclass(frozen=True)
class Header:
    """Names of the metric sums, in the order in which they travel, after count and weight."""

    metrics: tuple[str, ...]
    max_cohort: int

    @property
    def size(self) -> int:
        """Number of lanes."""
        return 2 + len(self.metrics)

    def encode(self, weight: float, values: Mapping[str, float]) -> Lanes:
        """Return one client's header lanes (size,): its count is 1.

        Raises:
            WireError: a metric is missing, unknown, not finite, negative, or so large that a sum over the cohort
                could overflow.
        """
        if set(values) != set(self.metrics):
            odd = sorted(set(values) ^ set(self.metrics))
            raise WireError(f"metrics: must be exactly those of the round's header, differ in {odd}")
        bound = self._bound // RESOLUTION
        for name, value in values.items():
            if not 0 <= value < bound:  # also false for NaN
                raise WireError(f"metric {name}: must be a number in [0, {bound}), got {value}")
        numbers = [weight, *(values[name] for name in self.metrics)]
        return np.array([1, *(round(number * RESOLUTION) for number in numbers)], np.uint64)

    def check(self, lanes: Lanes) -> None:
        """Check the header lanes (size,) that one client sent in the open.

        Raises:
            WireError: a count other than 1, a weight outside (0, 1], or a metric that could make the sum overflow.
        """
        count, weight, *metrics = (int(lane) for lane in lanes)
        if count != 1:
            raise WireError(f"count: must be 1, got {count}")
        if not 1 <= weight <= RESOLUTION:
            raise WireError(f"weight: must be in (0, 1], got {weight / RESOLUTION}")
        for name, value in zip(self.metrics, metrics, strict=True):
            if value >= self._bound:
                raise WireError(
                    f"metric {name}: must be below {self._bound / RESOLUTION:g}, got {value / RESOLUTION:g}"
                )

    @property
    def _bound(self) -> int:
        """A metric's integer stays below this, so that the sum over the cohort stays below 2^63."""
        return 2**63 // self.max_cohort

    def decode(self, lanes: Lanes) -> tuple[int, float, dict[str, float]]:
        """Return (number of clients, summed weight, metric sums) of summed header lanes (size,)."""
        count, *numbers = (int(lane) for lane in lanes)
        weight, *values = (number / RESOLUTION for number in numbers)
        return count, weight, dict(zip(self.metrics, values, strict=True))
