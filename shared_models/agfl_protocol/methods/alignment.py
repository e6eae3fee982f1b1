"""Weighting by alignment: who moves as the federation did counts more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.methods.weighting import Weighting
from agfl_protocol.update import Total, Update, inner_product, square_sum

_MAX_EXPONENT = math.log(3)


@dataclass(frozen=True)
class AlignmentWeighting:
    """Multiply the weight by exp(kappa cos(delta_i, x_t - x_{t-1})), within [1/3, 3]; then as `weighting`.

    Ours, in place of weights that the server would learn from single updates (FedAWA, FedLAW): it needs nothing but
    what was broadcast and the owner's own update. The cap of `weighting` bounds the product.
    """

    weighting: Weighting
    kappa: float

    def encode(self, update: Update) -> Update:
        """Scale gain and weight."""
        exponent = min(max(self.kappa * update.alignment, -_MAX_EXPONENT), _MAX_EXPONENT)
        return self.weighting.encode(replace(update, weight=update.weight * math.exp(exponent)))

    def decode(self, total: Total) -> Total:
        """Turn the sum of weighted deltas into their mean."""
        return self.weighting.decode(total)


def cosine(delta: NDArray[np.floating[Any]], way: NDArray[np.floating[Any]]) -> float:
    """Return the cosine of two vectors (d,), to six digits; 0 where one of them is zero."""
    norms = math.sqrt(square_sum(delta)) * math.sqrt(square_sum(way))
    return inner_product(delta, way) / norms if norms > 0 else 0.0
