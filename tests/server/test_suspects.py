"""Who is left out after a bad sum: whole groups, never too many, until sums are good; and who is told of."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from agfl_server.rounds.suspects import Absences, Suspects, explanations

LEAST = 4


def groups_of(count: int, size: int = LEAST) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{group:02}-{i}" for i in range(size)) for group in range(count))


def all_of(groups: Collection[tuple[str, ...]]) -> list[str]:
    return [name for group in groups for name in group]


def lead(suspects: Suspects, liars: Collection[str], least: int = LEAST) -> tuple[int, list[str], set[str]]:
    """Go through one round in which `liars` spoil each sum that they are in.

    Return how many sums were lost, who was told of, and who was in the good one; all names where none came about.
    """
    failed = 0
    while True:
        there = [name for name in all_of(suspects.groups) if name not in suspects.left_out()]
        out = suspects.probe(there, least, failed)
        if out is None:
            return failed, suspects.suspected(there), set()
        cohort = [name for name in there if name not in out]
        assert len(cohort) >= least
        assert all(set(group) <= set(cohort) or not set(group) & set(cohort) for group in suspects.groups)
        if not set(liars) & set(cohort):
            return failed, suspects.note_good(cohort), set(cohort)
        suspects.note_bad(cohort)
        failed += 1
        if failed > 50:
            raise AssertionError("it never ends")


@given(count=st.integers(2, 12), data=st.data())
def test_one_liar_costs_three_vectors_of_anybody_in_a_round_and_fewer_rounds_each_time(
    count: int, data: st.DataObject
) -> None:
    groups = groups_of(count)
    liar = data.draw(st.sampled_from(all_of(groups)))
    group = next(group for group in groups if liar in group)
    suspects, lost, told = Suspects(groups), [], []
    for _ in range(120):
        failed, names, cohort = lead(suspects, {liar})
        lost.append(failed)
        told.append(names)
        assert cohort
        assert liar not in cohort
        assert failed <= 2
    assert [names for names in told if names] == [sorted(group)]
    assert sum(map(bool, lost)) <= 12
    assert sum(map(bool, lost[60:])) <= 2


@given(count=st.integers(3, 7), data=st.data())
def test_two_liars_in_two_groups_are_found(count: int, data: st.DataObject) -> None:
    groups = groups_of(count)
    first, second = data.draw(st.sampled_from(list(combinations(groups, 2))))
    suspects = Suspects(groups)
    for _ in range(10):
        _, _, cohort = lead(suspects, {first[0], second[1]})
        assert cohort
        assert not {first[0], second[1]} & cohort


def test_one_group_alone_is_never_split() -> None:
    (group,) = groups_of(1, 5)
    suspects = Suspects((group,))
    suspects.note_bad(group)
    assert suspects.probe(group, LEAST, 1) is None
    assert suspects.suspected(group) == list(group)


def test_who_is_left_is_never_fewer_than_a_sum_needs() -> None:
    suspects = Suspects(groups_of(2))
    suspects.note_bad(all_of(suspects.groups))
    assert suspects.probe(all_of(suspects.groups), LEAST + 1, 1) is None


def test_a_liar_that_stops_lets_its_group_in_again() -> None:
    suspects = Suspects(groups_of(3))
    for _ in range(2):
        lead(suspects, {"01-0"})
    cohorts = [lead(suspects, ())[2] for _ in range(24)]
    assert set(all_of(suspects.groups)) in cohorts


def test_a_bad_sum_of_once_tells_of_nobody() -> None:
    suspects = Suspects(groups_of(3))
    suspects.note_bad(all_of(suspects.groups))
    told = [lead(suspects, ())[1] for _ in range(12)]
    assert told == [[]] * 12
    assert lead(suspects, ())[2] == set(all_of(suspects.groups))


def test_a_model_that_losses_refute_makes_the_last_two_sums_bad() -> None:
    """The liar of group 1 spoils models, which is seen a sum later; or it lies of losses, which is seen at once."""
    for delay in (1, 0):
        suspects, told, spoiled = Suspects(groups_of(3)), [], []
        for _ in range(60):
            there = [name for name in all_of(suspects.groups) if name not in suspects.left_out()]
            cohort = [name for name in there if name not in (suspects.probe(there, LEAST, 0) or ())]
            told += suspects.note_good(cohort)
            spoiled.append("01-0" in cohort)
            if spoiled[-1 - delay :][0] and len(spoiled) > delay:
                suspects.note_refuted()
                spoiled = []
        assert told == list(suspects.groups[1])


def test_absences_double_and_are_bounded() -> None:
    absences: Absences[str] = Absences()
    lengths = [absences.leave_out("a") for _ in range(12)]
    assert lengths == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
    for left in range(1024, 0, -1):
        assert absences.now == {"a"}
        assert absences.pass_one() == (["a"] if left == 1 else [])
    assert absences.now == frozenset()
    assert absences.again("a")


def test_what_explains_sums_is_the_smallest_set_of_groups() -> None:
    a, b, c = (frozenset({i}) for i in range(3))
    assert explanations(range(3), [a | b | c], []) == [a, b, c]
    assert explanations(range(3), [a | b | c, b | c], []) == [b, c]
    assert explanations(range(3), [a | b | c, b | c], [b]) == [c]
    assert explanations(range(3), [a | b, c], []) == [a | c, b | c]
    assert explanations(range(3), [a], [a]) == []
