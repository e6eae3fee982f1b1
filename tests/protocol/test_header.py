"""The header's numbers add up exactly over a cohort, and no single client can make the sum overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import ImplausibleSum, WireError
from agfl_protocol.messages.header import RESOLUTION, Header

METRICS = ("nll", "tokens")


@given(
    st.lists(
        st.tuples(st.floats(1 / RESOLUTION, 1), st.floats(0, 1e6), st.integers(0, 10**9)),
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


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**43 // 3, 1e300])
def test_a_metric_beyond_its_room_counts_as_the_most_of_it_and_is_no_error(value: float) -> None:
    header = Header(METRICS, 3)
    most = [header.encode(1.0, {"nll": 1.0, "tokens": value}) for _ in range(3)]
    assert header.decode(np.sum(most, axis=0, dtype=np.uint64))[2]["tokens"] == pytest.approx(2**43, rel=1e-9)


@pytest.mark.parametrize(
    ("lane", "value", "line"),
    [
        (1, 2**20 * 3 + 1, r"weight: the sum must be in \(0, 3\] over 3 clients, got 3"),
        (1, 2, r"weight: the sum must be in \(0, 3\] over 3 clients, got 1.9"),
        (1, 0, r"weight: the sum must be in \(0, 3\] over 3 clients, got 0"),
        (3, 2**63, r"metric tokens: the sum must be below 8.79609e\+12: a client lied"),
    ],
)
def test_a_sum_that_no_honest_clients_have_is_refused(lane: int, value: int, line: str) -> None:
    """With a summed weight of nothing the mean of the updates would be anything."""
    header = Header(METRICS, 3)
    lanes = header.encode(0.5, {"nll": 1.0, "tokens": 2.0}) * np.uint64(3)
    assert header.decode(lanes)[1:] == (1.5, {"nll": 3.0, "tokens": 6.0})
    lanes[lane] = value
    with pytest.raises(ImplausibleSum, match=line):
        header.decode(lanes)


@pytest.mark.parametrize(
    ("lane", "value", "line"),
    [
        (0, 2, r"^count: .*got 2.*AGFL-WIRE-027"),
        (1, 0, r"^weight: must be in \(0, 1\], got 0"),
        (1, 2**20 + 1, r"^weight: must be in \(0, 1\], got 1.0"),
        (3, 2**63 // 3, r"^metric tokens: must be below "),
    ],
)
def test_what_no_honest_client_sends_in_the_open_is_refused(lane: int, value: int, line: str) -> None:
    header = Header(METRICS, 3)
    lanes = header.encode(0.5, {"nll": 1.0, "tokens": 2.0})
    header.check(lanes)
    lanes[lane] = value
    with pytest.raises(WireError, match=line):
        header.check(lanes)


def test_a_metric_is_bounded_by_owner_where_its_bound_is_known() -> None:
    header = Header(METRICS, 3, {"tokens": 2.5, "other": 1.0})
    lanes = header.encode(0.5, {"nll": 1e6, "tokens": 2.5})
    header.check(lanes)
    assert header.decode(lanes * np.uint64(3))[2]["tokens"] == 7.5
    lanes[3] += np.uint64(1)
    with pytest.raises(WireError, match=r"^metric tokens: must be at most 2.5, got 2.5"):
        header.check(lanes)
    total = lanes * np.uint64(3)
    with pytest.raises(ImplausibleSum, match=r"^metric tokens: the sum must be at most 7.5 over 3 clients, got 7.5"):
        header.decode(total)


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
