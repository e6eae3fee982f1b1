"""Stochastic rounding: unbiased, exact on levels, where `unpacked` looks for them, and honest about its losses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_protocol.secagg.lanes import num_lanes, unpacked
from agfl_protocol.transforms.rounding import Losses, StochasticRounding
from agfl_protocol.update import Vector, square_sum

CHUNK = 2**16
HALVES = {1: 2**43, 2: 2**29, 3: 2**16, 4: 2**12}  # levels on each side of zero, by fields in a lane
SINGLE = st.sampled_from([2**16, 2**16 + 1])  # the last that float32 takes, and the first that it does not


def rounded(
    delta: Vector, sizes: list[int], factors: list[float], fields: int, half: int, seed: int = 0
) -> tuple[NDArray[np.int64], Losses]:
    """Return levels, counted from zero, and losses."""
    lanes = np.zeros(num_lanes(delta.size, fields), np.uint64)
    rounding = StochasticRounding(half, fields, np.random.default_rng(seed))
    losses = rounding.write(delta, sizes, factors, lanes)
    levels = np.concatenate([chunk for _, chunk in unpacked(lanes, delta.size, fields)])
    return levels.astype(np.int64) - half, losses


@pytest.mark.parametrize("fields", HALVES)
@pytest.mark.parametrize("size", [1, 2, 7, CHUNK - 1, CHUNK, 3 * CHUNK + 5, 4 * CHUNK + 1])
def test_levels_stay_and_stand_where_unpack_looks_for_them(fields: int, size: int) -> None:
    half = min(HALVES[fields], 2**23)  # whole numbers that float32 holds
    levels = np.random.default_rng(size).integers(-half, half, size, endpoint=True)
    cut = size // 3
    sizes, factors = [cut, 0, size - cut], [2.0, 1.0, 4.0]
    delta = np.concatenate([levels[:cut] / 2, levels[cut:] / 4]).astype(np.float32)
    got, losses = rounded(delta, sizes, factors, fields, HALVES[fields])
    assert np.array_equal(got, levels)
    assert not losses.rounding.any()
    assert not losses.clipping.any()


@given(SINGLE, st.floats(-1, 1), st.integers(0, 2**32))
def test_rounds_up_as_often_as_the_fraction_says(half: int, place: float, seed: int) -> None:
    y = np.float32(place * half)
    got, _ = rounded(np.full(20_000, y), [20_000], [1.0], 2, half, seed)
    assert set(got.tolist()) <= {int(np.floor(y)), int(np.ceil(y))}
    deviation = 0.5 / 20_000**0.5
    assert abs(got.mean() - float(y)) <= 1 / 256 + 6 * deviation


@pytest.mark.parametrize("fields", HALVES)
def test_losses_are_what_was_lost(fields: int) -> None:
    half, rng = HALVES[fields], np.random.default_rng(fields)
    delta = (rng.standard_normal(90_000) * half / 3).astype(np.float32)
    sizes = [50_000, 40_000]
    got, losses = rounded(delta, sizes, [1.0, 0.5], fields, half)
    assert losses.clipping[0] > 0
    for k, (place, factor) in enumerate([(slice(0, 50_000), 1.0), (slice(50_000, None), 0.5)]):
        y = delta[place].astype(np.float64) * factor
        inside = np.clip(y, -half, half)
        np.testing.assert_allclose(losses.clipping[k], np.square(y - inside).sum(), rtol=1e-6)
        np.testing.assert_allclose(losses.rounding[k], np.square(got[place] - inside).sum(), rtol=1e-5)
        assert np.abs(got[place]).max() <= half


def test_noise_follows_from_the_generator() -> None:
    delta = np.random.default_rng(0).uniform(-9, 9, 1000).astype(np.float32)
    first, again, other = (rounded(delta, [1000], [1.0], 4, 10, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_elements_of_a_vector_are_rounded_independently() -> None:
    got, _ = rounded(np.full(100_000, 0.5, np.float32), [100_000], [1.0], 4, 10)
    up = got - got.mean()
    for lag in (1, 2, 8, 25_000, CHUNK):
        assert abs(float(np.mean(up[lag:] * up[:-lag]))) < 6 * 0.25 / (100_000 - lag) ** 0.5, lag


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_square_sum_is_finite_just_where_its_vector_is(value: float) -> None:
    vector = np.full(20_000, 3e38, np.float32)
    assert np.isfinite(square_sum(vector))
    np.testing.assert_allclose(square_sum(vector / 1e38), 180_000, rtol=1e-6)
    vector[12_345] = value
    assert not np.isfinite(square_sum(vector))
    assert square_sum(vector[:0]) == 0
