"""The header's numbers add up exactly over a cohort, and no single client can make the sum overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import WireError
from agfl_protocol.header import RESOLUTION, Header

METRICS = ("nll", "tokens")


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1e6), st.integers(0, 10**9)),
        min_size=1,
        max_size=30,
    )
)
def test_sums_over_a_cohort_are_exact_to_the_resolution(clients: list[tuple[float, float, int]]) -> None:
    header = Header(METRICS, len(clients))
    lanes = np.zeros(header.size, np.uint64)
    for weight, nll, tokens in clients:
        lanes += header.encode(weight, {"tokens": tokens, "nll": nll})
    count, weight, metrics = header.decode(lanes)
    tolerance = len(clients) / RESOLUTION
    assert count == len(clients)
    assert weight == pytest.approx(math.fsum(w for w, _, _ in clients), abs=tolerance)
    assert metrics["nll"] == pytest.approx(math.fsum(n for _, n, _ in clients), rel=1e-15, abs=tolerance)
    assert metrics["tokens"] == sum(t for _, _, t in clients)  # integers are exact


@pytest.mark.parametrize("max_cohort", [1, 2, 3, 24, 1000, 2**20])
def test_largest_allowed_metric_of_every_client_does_not_overflow(max_cohort: int) -> None:
    header = Header(METRICS, max_cohort)
    bound = 2**63 // RESOLUTION // max_cohort
    largest = math.nextafter(bound, 0)
    lanes = header.encode(1.0, {"nll": largest, "tokens": 0.0})
    assert int(lanes[2]) * max_cohort < 2**64
    with pytest.raises(WireError, match=rf"metric nll: must be a number in \[0, {bound}\), got {bound}"):
        header.encode(1.0, {"nll": bound, "tokens": 0.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, 1e300])
def test_metric_that_is_no_number_of_a_sum_is_refused_by_name(value: float) -> None:
    with pytest.raises(WireError, match=r"metric tokens: must be a number in \[0, \d+\), got "):
        Header(METRICS, 3).encode(1.0, {"nll": 1.0, "tokens": value})


@pytest.mark.parametrize(
    ("values", "odd"),
    [({"nll": 1.0}, "tokens"), ({"nll": 1.0, "tokens": 1.0, "name": 1.0}, "name"), ({}, "nll', 'tokens")],
)
def test_missing_and_unknown_metrics_are_refused_by_name(values: dict[str, float], odd: str) -> None:
    with pytest.raises(WireError, match=rf"metrics: must be exactly .* differ in \['{odd}'\]"):
        Header(METRICS, 3).encode(1.0, values)


def test_order_of_metrics_is_the_order_of_lanes() -> None:
    lanes = Header(("b", "a"), 3).encode(0.5, {"a": 1.0, "b": 2.0})
    assert lanes.dtype == np.uint64
    assert lanes.tolist() == [1, RESOLUTION // 2, 2 * RESOLUTION, RESOLUTION]
