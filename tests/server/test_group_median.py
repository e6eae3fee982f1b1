"""Groups' sums compared: one group that lies is left out, whatever it says, and honest ones keep nearly their mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_server.group_median import geometric_median, without_farthest

SIZE = 500


def honest_groups(groups: int, seed: int) -> NDArray[np.float32]:
    """Means (G, d) of norms about 1, half of each common to all."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal(SIZE) + rng.standard_normal((groups, SIZE))
    result: NDArray[np.float32] = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    return result


@given(st.integers(3, 12), st.integers(0, 2**32), st.sampled_from([-1e30, -10.0, -1.0, 10.0, 1e30]))
def test_one_lying_group_is_the_one_that_is_left_out(groups: int, seed: int, factor: float) -> None:
    means, weights = honest_groups(groups, seed), np.ones(groups)
    liar = seed % groups
    honest = np.delete(means, liar, axis=0).astype(np.float64).mean(axis=0)
    means[liar] = factor * honest / np.linalg.norm(honest)
    mean, left_out = without_farthest(means, weights)
    assert left_out == liar
    np.testing.assert_allclose(mean, honest, atol=1e-6)


@given(st.integers(3, 8), st.integers(0, 2**32))
def test_the_median_is_the_point_nearest_to_all(groups: int, seed: int) -> None:
    """No point on the way to any group, nor to the mean, has a smaller weighted sum of distances."""
    rng = np.random.default_rng(seed)
    means, weights = rng.standard_normal((groups, 20)), rng.uniform(0.5, 2, groups)

    def cost(point: NDArray[np.float64]) -> float:
        return float(weights @ np.linalg.norm(means - point, axis=1))

    median = geometric_median(means, weights) @ means
    for other in (*means, means.mean(axis=0)):
        assert cost(median) <= cost(median + 0.01 * (other - median)) * (1 + 1e-3)


def test_groups_that_are_alike_or_empty_are_no_error() -> None:
    for means in (np.zeros((3, 4), np.float32), np.ones((4, 4), np.float32)):
        mean, _ = without_farthest(means, np.ones(len(means)))
        assert np.array_equal(mean, means[0])


def test_weights_count() -> None:
    means = np.array([[0.0, 1.0], [0.0, 2.0], [9.0, 9.0]], np.float32)
    mean, left_out = without_farthest(means, np.array([3.0, 1.0, 2.0]))
    assert left_out == 2
    assert mean.tolist() == pytest.approx([0.0, 1.25])
