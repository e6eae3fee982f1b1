"""Packing small unsigned integers into 64-bit lanes, so that adding lanes adds every field at once.

A lane holds F fields of B = floor(64/F) bits. Planar order: field j of lane i is element j*D + i, with D lanes. A
field never carries into the next one as long as its sum stays below 2^B, which the caller's levels guarantee.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.uint64]
_CHUNK = 2**16


def field_bits(fields_per_lane: int) -> int:
    """Return B, the bits of one field."""
    return 64 // fields_per_lane


def num_lanes(size: int, fields_per_lane: int) -> int:
    """Return D, the lanes that `size` elements take."""
    return -(-size // fields_per_lane)


def field(lanes: Lanes, number: int, bits: int) -> NDArray[np.uint64]:
    """Return one field of each lane."""
    return (lanes >> np.uint64(number * bits)) & np.uint64(2**bits - 1)


def unpacked(lanes: Lanes, size: int, fields_per_lane: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield the `size` elements of packed lanes, or the sums of elements of added ones, in chunks: (first, elements).

    A chunk is the caller's own, to change.
    """
    bits = field_bits(fields_per_lane)
    for number in range(fields_per_lane):
        for start in range(0, lanes.size, _CHUNK):
            first = number * lanes.size + start
            chunk = field(lanes[start : start + _CHUNK], number, bits)[: max(0, size - first)]
            if chunk.size:
                yield first, chunk
