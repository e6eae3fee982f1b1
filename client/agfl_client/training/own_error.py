"""What pairs of sampled sums, with and without an owner, give away of that owner's update.

k pairs leave an own error of (1 + k s)^-1/2 with s = a^2 / (2 h sigma^2): what the best combination of all sums misses
of the update, over what the best multiple of one sum misses; 1 is nothing given away, 0 all. Legend: h honest others
in each sum; sigma the noise of an update by its batches, and a the owner's own part of it, both over its norm.
"""

from __future__ import annotations

import math

from agfl_protocol.update import Vector, square_sum

MIN_SIGMA = 0.1  # below it a hundred pairs give most of an update away


def own_error(pairs: float, sigma: float, honest_others: int) -> float:
    """Return the own error that so many pairs leave; a is taken as large as it can be, sqrt(1 - sigma^2)."""
    if sigma <= 0:
        return 0.0 if pairs > 0 else 1.0
    strength = max(1 - sigma**2, 0.0) / (2 * max(honest_others, 1) * sigma**2)
    return 1 / math.sqrt(1 + pairs * strength)


def measure_sigma(first: Vector, second: Vector) -> float:
    """Return sigma, in [0, 1], from two updates of one model with fresh batches each; 0 where neither moved it."""
    mean = (square_sum(first) + square_sum(second)) / 2
    if not 0 < mean < math.inf:
        return 0.0
    return min(math.sqrt(square_sum(first - second) / 2 / mean), 1.0)
