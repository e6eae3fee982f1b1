"""Stochastic rounding of a vector into the fields of lanes, chunk by chunk, so that all steps stay in the cache.

An element is rounded up with probability y - floor(y), to within 1/256, hence without bias (QSGD, Alistarh et al. 2017,
arXiv:1610.02132): to y, in units of 1/256 level, comes noise that is uniform over the odd numbers in (-128, 128), and
adding a number so large that its neighbors are one level apart rounds to the nearest level. What is a level already
stays, zero among them. Single precision does where it holds y exactly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.secagg.lanes import Lanes, field_bits
from agfl_protocol.secagg.masks import SEED_BYTES, KeyStream
from agfl_protocol.update import Vector, square_sum

_CHUNK = 2**16  # elements
_UNITS = 256  # of one level
_ODD = np.uint8(1)
_SINGLE = 2**16  # levels on each side of zero for which float32, with 24 bits, is exact

Real = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Losses:
    """What rounding lost, for each of K parts, (K,) each: summed squared errors, in levels."""

    rounding: NDArray[np.float64]
    clipping: NDArray[np.float64]


class StochasticRounding:
    """Rounds to the levels 0 ... 2 * half, of which `half` is zero; the noise follows from `rng`."""

    def __init__(self, half: int, fields_per_lane: int, rng: np.random.Generator) -> None:
        self._half, self._fields_per_lane = half, fields_per_lane
        real, unsigned = (np.float32, np.uint32) if half <= _SINGLE else (np.float64, np.uint64)
        big = 1.5 * 2 ** (np.finfo(real).nmant) * _UNITS
        self._first = int(np.array(big, real).view(unsigned))  # bit pattern of level 0: those of the others follow
        self._rounder = real(big + half * _UNITS)
        self._y, self._rounded = np.empty((2, _CHUNK), real)
        self._unsigned, self._shifted = unsigned, np.empty(_CHUNK, np.uint64)
        self._noise = KeyStream(rng.bytes(SEED_BYTES), _CHUNK)

    def write(self, delta: Vector, sizes: Sequence[int], factors: Sequence[float], lanes: Lanes) -> Losses:
        """Write the levels of `delta` (d,) to the fields of `lanes`, in their planar order.

        sizes, factors: of each part its number of elements and what makes levels of them, (K,).
        """
        losses = Losses(*np.zeros((2, len(sizes))))
        self._clear(lanes, delta.size)
        for k, shift, lane, start, end in _chunks(sizes, lanes.size, field_bits(self._fields_per_lane)):
            size = end - start
            y, shifted = self._y[:size], self._shifted[:size]
            self._scale(k, delta[start:end], factors[k], y, losses)
            rounded = self._round(y)
            np.copyto(shifted, rounded.view(self._unsigned))
            shifted <<= shift
            lanes[lane : lane + size] += shifted
            rounded -= self._rounder
            rounded -= y
            losses.rounding[k] += square_sum(rounded) / _UNITS**2
        return losses

    def _clear(self, lanes: Lanes, size: int) -> None:
        """Fill `lanes` with what makes levels of bit patterns when these are added, modulo 2^64."""
        shifts = range(0, 64, field_bits(self._fields_per_lane))[: -(-size // max(lanes.size, 1))]
        lanes.fill(-sum(self._first << shift for shift in shifts) % 2**64)
        missing = len(shifts) * lanes.size - size  # in the last plane
        if missing:
            lanes[-missing:] += np.uint64((self._first << shifts[-1]) % 2**64)

    def _scale(self, k: int, x: Vector, factor: float, y: Real, losses: Losses) -> None:
        """Write x into `y` in units, clipped to what levels there are; note what was cut off."""
        peak = factor * max(float(np.maximum.reduce(x)), -float(np.minimum.reduce(x)))
        if peak > self._half * (1 - 2**-20):  # rounding to float32 may step over the last level
            wide = x.astype(np.float64) * factor
            inside = np.clip(wide, -self._half, self._half)
            losses.clipping[k] += square_sum(wide - inside)
            np.multiply(inside, _UNITS, out=y, casting="same_kind")
        else:
            np.multiply(x, y.dtype.type(factor * _UNITS), out=y)

    def _round(self, y: Real) -> Real:
        """Return the level nearest to y plus noise, in units, with the rounder still added."""
        noise, rounded = self._noise.next(y.size), self._rounded[: y.size]
        noise |= _ODD
        np.copyto(rounded, noise.view(np.int8))
        rounded += y
        rounded += self._rounder
        return rounded


def _chunks(sizes: Sequence[int], num_lanes: int, bits: int) -> Iterator[tuple[int, np.uint64, int, int, int]]:
    """Yield (part, shift, first lane, start, end) of chunks of the flat vector, each in one part and one field.

    All fields of some lanes come before the next lanes, so that main memory is passed over once.
    """
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    size = ends[-1] if ends else 0
    for first in range(0, num_lanes, _CHUNK):
        last = min(first + _CHUNK, num_lanes)
        for field, plane in enumerate(range(0, size, num_lanes)):
            start, stop = plane + first, min(plane + last, size)
            while start < stop:
                k = bisect_right(ends, start)
                end = min(stop, ends[k])
                yield k, np.uint64(field * bits), start - plane, start, end
                start = end
