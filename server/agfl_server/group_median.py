"""Sums of a plan's groups, compared: a liar has its own group only, and a group far from all others is left out.

One lie can put any vector within the bound of the norm in the place of a sum, since nobody sees who added what. Where
owners are summed in groups, that is one group of several, and their geometric median (Pillutla, Kakade and Harchaoui
2022, arXiv:1912.13445) or their mean without the farthest one hardly moves. The price is that the server learns each
group's sum. Measured in SECURITY.md. Legend: G groups, d parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.update import Vector

_STEPS, _TINY = 30, 1e-9
Array = NDArray[np.floating[Any]]


def geometric_median(means: Array, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares (G,) in which the groups' means (G, d) make up their geometric median, by Weiszfeld's steps.

    Only inner products of the means are needed: the median, with the least weighted sum of distances, is one of their
    means.
    """
    gram = means.astype(np.float64) @ means.T.astype(np.float64)
    share: NDArray[np.float64] = weights / weights.sum()
    for _ in range(_STEPS):
        squares = np.diag(gram) - 2 * gram @ share + share @ gram @ share
        distances = np.sqrt(np.maximum(squares, (_TINY**2) * (1 + np.trace(gram))))
        share = weights / distances
        share /= share.sum()
    return share


def without_farthest(means: Array, weights: NDArray[np.float64]) -> tuple[Vector, int]:
    """Return the weighted mean of the groups but the one farthest from the geometric median, and which that is.

    means: (G, d), G >= 3; weights: (G,), > 0. Three groups stand one liar, of more groups still one.
    """
    assert len(means) >= 3, len(means)
    center = geometric_median(means, weights) @ means
    farthest = int(np.argmax([float(np.linalg.norm(mean - center)) for mean in means]))
    kept = np.where(np.arange(len(means)) == farthest, 0.0, weights)
    mean: Vector = ((kept / kept.sum()) @ means).astype(np.float32)
    return mean, farthest
