"""The worst tenth of owners, out of a histogram that names nobody, is within a bin of what the values say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.tasks import distribution
from agfl_models.tasks.distribution import BINS, MIN_OWNERS, WORST_DECILE, one_hot, worst_decile
from agfl_models.tasks.task import MainMetric

SCORE = MainMetric("eval/score", "score", 0.0, 100.0, higher_is_better=True)
COST = MainMetric("eval/cost", "cost", 2.0, 8.0, higher_is_better=False)
METRICS = st.sampled_from([SCORE, COST])


def total(metric: MainMetric, values: list[float]) -> dict[str, float]:
    owners = [one_hot(metric, {metric.name: value}) for value in values]
    return {name: sum(owner[name] for owner in owners) for name in BINS}


SHARES = st.lists(st.floats(0, 1), min_size=MIN_OWNERS, max_size=60)


def values_of(metric: MainMetric, shares: list[float]) -> list[float]:
    return [metric.low + share * (metric.high - metric.low) for share in shares]


def better_by(metric: MainMetric, value: float, other: float) -> float:
    """Return by how many bins a value is better than another."""
    difference = (value - other) * distribution.NUM_BINS / (metric.high - metric.low)
    return difference if metric.higher_is_better else -difference


@given(METRICS, SHARES | st.lists(st.floats(0.4, 0.4999), min_size=MIN_OWNERS, max_size=60))
def test_worst_tenth_is_at_most_half_a_bin_too_good_and_less_than_a_bin_too_bad(
    metric: MainMetric, shares: list[float]
) -> None:
    values = values_of(metric, shares)
    worst = sorted(values, reverse=not metric.higher_is_better)[: math.ceil(len(values) / 10)]
    found = worst_decile(metric, total(metric, values))[WORST_DECILE]
    assert -1 - 1e-9 <= better_by(metric, found, sum(worst) / len(worst)) <= 0.5 + 1e-9


@given(METRICS, SHARES, st.data())
def test_an_owner_that_gets_worse_never_makes_the_worst_tenth_better(
    metric: MainMetric, shares: list[float], data: st.DataObject
) -> None:
    before = worst_decile(metric, total(metric, values_of(metric, shares)))[WORST_DECILE]
    who = data.draw(st.integers(0, len(shares) - 1))
    worst = 0.0 if metric.higher_is_better else 1.0
    shares[who] += data.draw(st.floats(0, 1)) * (worst - shares[who])
    after = worst_decile(metric, total(metric, values_of(metric, shares)))[WORST_DECILE]
    assert better_by(metric, after, before) <= 1e-9


@pytest.mark.parametrize("count", [10, 20, 60])
def test_the_worst_tenth_of_one_bin_is_at_its_worse_end_and_not_in_its_middle(count: int) -> None:
    evenly = [40.0 + 5 * (place + 0.5) / count for place in range(count)]
    for values in (evenly, [42.5] * count):
        assert worst_decile(SCORE, total(SCORE, values))[WORST_DECILE] == pytest.approx(40.25)
    assert sum(sorted(evenly)[: count // 10]) / (count // 10) == pytest.approx(40.25)  # spread so, it is exact


@given(METRICS, st.floats(allow_nan=False, allow_infinity=False))
def test_every_owner_is_in_one_bin(metric: MainMetric, value: float) -> None:
    counts = one_hot(metric, {metric.name: value})
    assert tuple(counts) == BINS
    assert sorted(counts.values()) == [0.0] * 19 + [1.0]


def test_bins_are_equally_wide_and_the_last_ones_open() -> None:
    def bin_of(value: float) -> int:
        return list(one_hot(SCORE, {"eval/score": value}).values()).index(1.0)

    assert [bin_of(value) for value in (-5, 0, 4.99, 5, 99.9, 100, 1e9)] == [0, 0, 0, 1, 19, 19, 19]


@pytest.mark.parametrize("metrics", [{}, {"eval/score": math.nan}, {"eval/score": math.inf}, {"eval/other": 1.0}])
def test_owner_without_a_value_is_in_none(metrics: dict[str, float]) -> None:
    assert one_hot(SCORE, metrics) == dict.fromkeys(BINS, 0.0)


@pytest.mark.parametrize("count", [0, 1, MIN_OWNERS - 1])
def test_nothing_is_said_of_few_owners(count: int) -> None:
    assert worst_decile(SCORE, total(SCORE, [50.0] * count)) == {}


def test_direction_decides_who_is_worst() -> None:
    values = [3.0] * 9 + [7.9]
    assert worst_decile(COST, total(COST, values))[WORST_DECILE] == pytest.approx(7.85)
    better_high = MainMetric("eval/cost", "cost", 2.0, 8.0, higher_is_better=True)
    assert worst_decile(better_high, total(better_high, values))[WORST_DECILE] == pytest.approx(2.9 + 0.3 / 18)
