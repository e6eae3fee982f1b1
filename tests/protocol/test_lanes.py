"""Packed lanes: unpacking undoes packing, and adding lanes adds every field as long as its sum fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_protocol.secagg.lanes import Lanes, field_bits, num_lanes, unpacked

FIELDS = (1, 2, 3, 4)
SIZES = (0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 1000, 1003, 3 * 2**16 + 5)  # the last is of several chunks


def unpack(lanes: Lanes, size: int, fields: int) -> np.ndarray:
    """Return all elements, each chunk where it says that it belongs."""
    elements = np.zeros(size, np.uint64)
    for first, chunk in unpacked(lanes, size, fields):
        elements[first : first + chunk.size] = chunk
    return elements


def pack(elements: np.ndarray, fields_per_lane: int) -> Lanes:
    """Pack `elements` (size,) into lanes (D,); missing fields of the last plane are zero."""
    count = num_lanes(elements.size, fields_per_lane)
    lanes = np.zeros(count, np.uint64)
    for j in range(fields_per_lane):
        plane = elements[j * count : (j + 1) * count]
        lanes[: plane.size] |= plane << np.uint64(j * field_bits(fields_per_lane))
    return lanes


def numbers(size: int, below: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, size, np.uint64, endpoint=False)


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("size", SIZES)
def test_unpack_undoes_pack(size: int, fields: int) -> None:
    elements = numbers(size, 2 ** field_bits(fields), size)
    lanes = pack(elements, fields)
    assert lanes.dtype == np.uint64
    assert lanes.shape == (num_lanes(size, fields),) == (-(-size // fields),)
    assert np.array_equal(unpack(lanes, size, fields), elements)


@pytest.mark.parametrize(("fields", "bits"), [(1, 64), (2, 32), (3, 21), (4, 16)])
@pytest.mark.parametrize("size", SIZES)
def test_largest_number_fills_its_field_and_no_other(size: int, fields: int, bits: int) -> None:
    assert field_bits(fields) == bits
    largest = 2**bits - 1
    full = np.full(size, largest, np.uint64)
    assert np.array_equal(unpack(pack(full, fields), size, fields), full)
    for place in range(size if size < 20 else 0):
        single = np.zeros(size, np.uint64)
        single[place] = largest
        assert np.array_equal(unpack(pack(single, fields), size, fields), single)
        assert np.array_equal(pack(single, fields) | pack(full - single, fields), pack(full, fields))


@given(
    st.sampled_from(FIELDS),
    st.integers(0, 40),
    st.integers(1, 30),
    st.integers(0, 2**32),
)
def test_sum_of_packed_is_packed_sum(fields: int, size: int, clients: int, seed: int) -> None:
    elements = [numbers(size, (2 ** field_bits(fields) - 1) // clients + 1, seed + i) for i in range(clients)]
    total = np.zeros(num_lanes(size, fields), np.uint64)
    for vector in elements:
        total += pack(vector, fields)
    exact = [sum(int(vector[i]) for vector in elements) for i in range(size)]
    assert max(exact, default=0) < 2 ** field_bits(fields)
    assert unpack(total, size, fields).tolist() == exact


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("clients", [2, 3, 24, 1000])
def test_sum_at_the_boundary_is_exact(fields: int, clients: int) -> None:
    largest = 2 ** field_bits(fields) - 1
    share, rest = divmod(largest, clients)
    vectors = [np.full(7, share + (i < rest), np.uint64) for i in range(clients)]
    total = np.zeros(num_lanes(7, fields), np.uint64)
    for vector in vectors:
        total += pack(vector, fields)
    assert unpack(total, 7, fields).tolist() == [largest] * 7
