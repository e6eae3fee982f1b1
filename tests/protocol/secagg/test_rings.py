"""The rule of fillers: what it refuses, in which line, and what it keeps where c clients say what they like."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.rings import MAX_RINGS, check_fillers

NUMBERS = st.integers(1, MAX_RINGS)


@pytest.mark.parametrize(
    "rings",
    [[], [1] * 3, [8] * 4, [1] * 3 + [2] * 3, [1, 2, 8] * 3],
    ids=["nobody", "one number", "the highest", "two numbers", "gaps"],
)
def test_each_number_is_that_of_nobody_or_of_enough(rings: list[int]) -> None:
    check_fillers(rings, "U3", 3)


@pytest.mark.parametrize(
    ("rings", "number", "count"),
    [([2], 2, 1), ([1] * 3 + [2] * 2, 2, 2), ([1, 1] + [2] * 9, 1, 2), ([1] * 3 + [3] + [2] * 3, 3, 1)],
)
def test_too_few_of_a_number_are_refused(rings: list[int], number: int, count: int) -> None:
    line = rf"^rings: exactly {number} must be .* = 3 of U3, got {count}.*AGFL-SECURE-010"
    with pytest.raises(ProtocolViolation, match=line):
        check_fillers(rings, "U3", 3)


def line_of(rings: list[int], min_cohort: int) -> str:
    """What a client answers: the line of its refusal, or nothing."""
    try:
        check_fillers(rings, "U3", min_cohort)
    except ProtocolViolation as error:
        return str(error)
    return ""


@given(rings=st.lists(NUMBERS, max_size=20), seed=st.integers(0, 2**32))
def test_the_line_is_the_same_whoever_fills_what(rings: list[int], seed: int) -> None:
    """It follows from the counts alone: giving the numbers to other clients changes no letter."""
    others = list(rings)
    Random(seed).shuffle(others)
    assert line_of(rings, 4) == line_of(others, 4)


@pytest.mark.parametrize("c", range(1, 6))
def test_c_liars_cannot_hide_a_lone_filler_and_c_plus_one_could(c: int) -> None:
    """Whatever is said besides, an honest client that passes the check has a second one of its number beside it."""
    cases = [(a, b, x, y) for a in range(9) for b in range(9) for x in range(c + 1) for y in range(c + 1 - x)]
    passing = [(a, b) for a, b, x, y in cases if not line_of([1] * (a + x) + [2] * (b + y), c + 2)]
    assert {1}.isdisjoint(count for case in passing for count in case)
    assert (2, 8) in passing
    assert not line_of([1] * 8 + [2] + [2] * (c + 1), c + 2)
