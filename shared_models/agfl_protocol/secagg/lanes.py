"""Packing small unsigned integers into 64-bit lanes, so that adding lanes adds every field at once.

A lane holds F fields of B = floor(64/F) bits. Planar order: field j of lane i is element j*D + i, with D lanes. A
field never carries into the next one as long as its sum stays below 2^B, which the caller's levels guarantee.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.uint64]


def field_bits(fields_per_lane: int) -> int:
    """Return B, the bits of one field."""
    return 64 // fields_per_lane


def num_lanes(size: int, fields_per_lane: int) -> int:
    """Return D, the lanes that `size` elements take."""
    return -(-size // fields_per_lane)


def unpack(lanes: Lanes, size: int, fields_per_lane: int) -> NDArray[np.uint64]:
    """Return the `size` elements of packed lanes, or the sums of elements of added ones."""
    bits = field_bits(fields_per_lane)
    mask = np.uint64(2**bits - 1)
    planes = [(lanes >> np.uint64(j * bits)) & mask for j in range(fields_per_lane)]
    return np.concatenate(planes)[:size] if planes else np.zeros(0, np.uint64)
