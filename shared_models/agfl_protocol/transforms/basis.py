"""The basis in which a vector is quantized: each ring of an elastic model in a rotation of its own, else all in one.

Who does not train a ring adds zero to each of its elements, in any basis, so what a ring's sum is does not depend on
how many others an owner has. Legend: d parameters, R rings, D elements in the basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.transforms.rotation import Rotation
from agfl_protocol.update import CHUNK, Vector, square_sum

BOX = 4.0  # range of an element, in standard deviations of one of a vector at the bound of the norm
_CHANCE = 7.0  # standard deviations of a fourth moment that do not come about by chance
_TOLERANCE = 0.02  # of a fourth moment, for all that is not quite normal
_SPIKES = 0.3  # by so much less is it where one parameter outweighs all others: 2 B / M of `Rotation`, and chance


@dataclass(frozen=True, eq=False)
class Basis:
    """Of vectors (size,); ring: uint8 (size,), or None where the model is not elastic; seed: the round's."""

    size: int
    seed: bytes
    ring: NDArray[np.uint8] | None = None

    @cached_property
    def rotations(self) -> tuple[Rotation, ...]:
        """That of each ring, (R,)."""
        if self.ring is None:
            return (Rotation(self.size, self.seed),) if self.size else ()
        sizes = np.bincount(self.ring).tolist()
        return tuple(Rotation(size, self.seed, number) for number, size in enumerate(sizes))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each ring in the basis, (R,)."""
        return tuple(rotation.padded for rotation in self.rotations)

    def boxes(self, clip_l2: float) -> tuple[float, ...]:
        """Return the range C_k of the elements of each ring, (R,), of vectors of norms up to `clip_l2`.

        Who fills all of them sends a vector of norm `BOX` times that, in each ring.
        """
        return tuple(clip_l2 * min(1.0, BOX / max(size, 1) ** 0.5) for size in self.sizes)

    def forward(self, x: Vector, gain: float) -> Vector:
        """Return `gain` times x (d,) in the basis, (D,)."""
        if self.ring is None:
            return self.rotations[0].forward(x, gain) if self.size else np.zeros(0, np.float32)
        parts = [rotation.forward(x[self.ring == number], gain) for number, rotation in enumerate(self.rotations)]
        return np.concatenate(parts)

    def inverse(self, y: Vector) -> Vector:
        """Return y (D,) as a vector of parameters, (d,); `y` is overwritten."""
        if self.ring is None:
            return self.rotations[0].inverse(y) if self.size else y
        x = np.zeros(self.size, np.float32)
        for number, (rotation, part) in enumerate(zip(self.rotations, self.split(y), strict=True)):
            x[self.ring == number] = rotation.inverse(part)
        return x

    def fourth_moments(self, y: Vector) -> list[float]:
        """Return the mean fourth power of the elements y (D,) of each ring, (R,), over their squared mean square."""
        return [_fourth_moment(part) for part in self.split(y)]

    def flatness(self, moments: Sequence[float], x: Vector) -> float:
        """Return how much flatter than normal the elements of a sum are, over what chance explains: honest is below 1.

        moments: `fourth_moments` of its elements; x: the same sum as a vector of parameters, (d,). Elements of a vector
        that does not depend on the rotation are as good as normal: their fourth moment is 3, give or take sqrt(24 / D),
        or somewhat less where a few parameters outweigh all others. Elements that are filled to the brim have 1.
        """
        flattest = 0.0
        for number, (size, moment) in enumerate(zip(self.sizes, moments, strict=True)):
            part = x if self.ring is None else x[self.ring == number]
            spikiness = _fourth_moment(part) / part.size
            allowed = max(_TOLERANCE, _CHANCE * (24 / size) ** 0.5) + _SPIKES * spikiness
            flattest = max(flattest, (3 - moment) / allowed if moment else 0.0)
        return flattest

    def split(self, y: Vector) -> list[Vector]:
        """Return the elements y (D,) of each ring."""
        ends = list(accumulate(self.sizes))
        return [y[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]


def _fourth_moment(x: Vector) -> float:
    """Return E[x^4] / E[x^2]^2; 0 where all are zero."""
    norm = square_sum(x) ** 0.5
    if not norm > 0:
        return 0.0
    parts = (x[start : start + CHUNK] for start in range(0, x.size, CHUNK))
    return sum(square_sum(np.square(part / np.float32(norm))) for part in parts) * x.size
