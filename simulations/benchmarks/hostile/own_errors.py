"""Own error: how much more all sums together tell of one owner's update than one sum does.

What the best linear combination of all sums (coefficients in hindsight) misses of the update that the owner is
expected to make, over what the best multiple of one sum misses: 1 = the others told nothing, 0 = exact. Many sums of
fresh draws lower it of everybody, whoever is in them, since their mean knows what all have in common, and hindsight
finds it. What the sets tell is apart: the best combination of the sums that each owner was in, over the best multiple
of their mean. Legend: d parameters, m sums.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """An owner's expected update, as the means of two halves of draws: what is missed of both is no noise of either."""

    name: str
    halves: tuple[Matrix, Matrix]

    @staticmethod
    def of(name: str, draws: Sequence[NDArray[np.float32]]) -> Target:
        """Return the target of at least two draws; of one that is exact, that one twice."""
        both = np.array(draws, np.float64)
        return Target(name, (both[::2].mean(0), both[1::2].mean(0)))

    @property
    def mean(self) -> Matrix:
        """The expected update (d,)."""
        return (self.halves[0] + self.halves[1]) / 2


class Known:
    """What a server knows: the space of all linear combinations of its sums."""

    def __init__(self, sums: Sequence[NDArray[np.floating]]) -> None:
        """Each of the sums is (d,)."""
        self._sums = np.array(sums, np.float64)
        self._space = _orthonormal(self._sums)

    def error(self, target: Target) -> float:
        """Return the own error."""
        return self._error(target, self._space, [sum_[None] for sum_ in self._sums[:4]])

    def error_by_sets(self, target: Target, sets: Sequence[Collection[str]]) -> float:
        """Return how far the sums are told apart by who is in them, of sums that say the same but for their draws."""
        names = sorted({name for names in sets for name in names})
        places = np.array([[name in names_ for name in names] for names_ in sets], np.float64)
        distinct = np.unique(places.T, axis=0)
        means = (distinct / distinct.sum(1, keepdims=True)) @ self._sums
        return self._error(target, _orthonormal(np.vstack([means, self._sums.mean(0)])), [self._sums.mean(0)[None]])

    @staticmethod
    def _error(target: Target, space: Matrix, bases: Sequence[Matrix]) -> float:
        one = min(_missed(_orthonormal(rows), target) for rows in bases)
        return math.sqrt(max(_missed(space, target), 0.0) / one) if one > 0 else 1.0


def formula(pairs: float, s: float) -> float:
    """Return the own error that k pairs are expected to leave."""
    return float((1 + pairs * s) ** -0.5)


def exposure(targets: Sequence[Target], draws: Sequence[Sequence[NDArray[np.float32]]], owner: int) -> float:
    """Return s = a^2 / (2 h sigma^2) of an owner among the others, all honest.

    sigma: the noise of an update by its batches; a: what of an owner's expected update no multiple of the others' has.
    Both over the update's norm.
    """
    others = [target.mean for i, target in enumerate(targets) if i != owner]
    norm2 = float(np.mean([np.mean([_square(d) for d in some]) for some in draws]))
    sigma2 = float(np.mean([_variance(some) for some in draws])) / norm2
    own2 = _missed(_orthonormal(np.sum(others, 0)[None]), targets[owner]) / norm2
    return own2 / (2 * len(others) * sigma2)


def _orthonormal(rows: Matrix) -> Matrix:
    """Return an orthonormal basis of the rows' span as columns; sums that others hold to the last bits add none."""
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    basis, upper = np.linalg.qr(scaled.T)
    vectors, values, _ = np.linalg.svd(upper)
    kept: Matrix = basis @ vectors[:, values > values[0] * 1e-12]
    return kept


def _missed(basis: Matrix, target: Target) -> float:
    """Return the square of what a space misses of a target, without the noise of the draws."""
    one, other = (half - basis @ (basis.T @ half) for half in target.halves)
    return float(one @ other)


def _square(vector: NDArray[np.floating]) -> float:
    wide = vector.astype(np.float64)
    return float(wide @ wide)


def _variance(draws: Sequence[NDArray[np.float32]]) -> float:
    both = np.array(draws, np.float64)
    return float(((both - both.mean(0)) ** 2).sum() / (len(draws) - 1))
