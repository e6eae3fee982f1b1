"""Who may have spoiled a sum. A sum does not say, so the liar is looked for by the plan's groups, in later sums.

After a sum that no honest owners have, the next ones leave out whole groups of the plan, never one owner alone. What
explains all sums of a search is a set of groups of which each bad sum had one and no good sum had any; the smallest
such sets are the suspects. Half of them are left out, then all, so that one liar costs two sums of a round. If one set
alone explains everything, it is left out of some sums, and then tried again; each time it is found anew, of twice as
many. Nobody is named by this but a whole group. A sum counts as good two sums later: where losses refute the model
that it made, it was bad, or the one that says so is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Generic, TypeAlias, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
GroupSet: TypeAlias = frozenset[int]
_FIRST, _FIRST_PROVEN, _LONGEST = 2, 16, 1024  # sums
_MOST_LIARS = 3  # groups with a liar that are looked for
_JUDGED_AFTER = 2  # sums; the next one says whether the model is good that a sum made
_PROOF = 2  # bad sums with a group before it is told to anybody


@dataclass
class Absences(Generic[KeyT]):
    """Who is left out of so many next sums, `first` at first, and each time of twice as many."""

    first: int = _FIRST
    _left: dict[KeyT, int] = field(default_factory=dict)
    _length: dict[KeyT, int] = field(default_factory=dict)

    @property
    def now(self) -> frozenset[KeyT]:
        """Who is left out of the next sum."""
        return frozenset(self._left)

    def leave_out(self, key: KeyT) -> int:
        """Leave somebody out; return of how many sums."""
        self._left[key] = self._length[key] = min(2 * self._length.get(key, self.first // 2), _LONGEST)
        return self._left[key]

    def again(self, key: KeyT) -> bool:
        """Whether this has been left out before."""
        return key in self._length

    def take_back(self, key: KeyT) -> None:
        """Let somebody in again at once."""
        self._left.pop(key, None)

    def pass_one(self) -> list[KeyT]:
        """Count a sum; return whose time is over."""
        self._left = {key: left - 1 for key, left in self._left.items()}
        over = [key for key, left in self._left.items() if left <= 0]
        for key in over:
            del self._left[key]
        return over


def explanations(groups: Iterable[int], bad: Sequence[GroupSet], good: Sequence[GroupSet]) -> list[GroupSet]:
    """Return the smallest sets of groups of which each bad sum had one, and no good sum had any.

    bad: the groups that somebody of was in a sum; good: those that were in it whole.
    """
    cleared = frozenset().union(*good)
    suspected = [group for group in groups if group not in cleared and any(group in had for had in bad)]
    for size in range(1, min(_MOST_LIARS, len(suspected)) + 1):
        found = [frozenset(some) for some in combinations(suspected, size)]
        found = [some for some in found if all(some & had for had in bad)]
        if found:
            return found
    return []


@dataclass
class Suspects:
    """What the sums of this run have said so far. It lies in memory: a server that is started anew looks again.

    groups: of the plan; none where sums are plain, and each vector is checked by itself. is_by_group: each sum is of
    one group, so that nothing has to be looked for. proven: owners that are proven to have broken the protocol.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    is_by_group: bool = False
    proven: Absences[str] = field(default_factory=lambda: Absences(_FIRST_PROVEN))
    _absent: Absences[int] = field(default_factory=Absences)
    _bad: list[GroupSet] = field(default_factory=list)
    _good: list[GroupSet] = field(default_factory=list)
    _times: Counter[int] = field(default_factory=Counter)
    _told: set[int] = field(default_factory=set)
    _open: list[GroupSet] = field(default_factory=list)
    _recent: list[GroupSet] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.is_by_group:  # each sum of another group counts
            self.proven.first *= len(self.groups)
            self._absent.first *= len(self.groups)

    def left_out(self) -> frozenset[str]:
        """Return the owners without whom the next sum should be: of groups that were found, and those proven."""
        return self._names(self._absent.now) | self.proven.now

    def probe(self, cohort: Collection[str], minimum: int, failed: int) -> frozenset[str] | None:
        """Return who is left out of the next sum to find the liar: whole groups; None where nothing can be found so.

        minimum: owners of `cohort` that must be left. failed: bad sums of this round so far.
        """
        if not self._bad:
            return frozenset()
        found = explanations(range(len(self.groups)), self._bad, self._good)
        found.sort(key=lambda some: (-sum(self._absent.again(group) for group in some), sorted(some)))
        if not found:
            return None
        if len(found[0]) == 1:
            half = max(len(found) // 2, 1)
            sizes = [len(found)] if failed > 1 else []
            tries = [frozenset[int]().union(*found[:size]) for size in (*sizes, *range(half, 0, -1))]
        else:
            tries = found
        for some in tries:
            out = self._names(some) & frozenset(cohort)
            if out and len(cohort) - len(out) >= minimum:
                return out
        return None

    def note_bad(self, names: Collection[str]) -> list[str]:
        """Note a sum over `names` that no honest owners have; return of whom one lies, where that is known, once."""
        self._add_bad(self._groups_of(names))
        return self._convict(self._groups_of(names)) if self.is_by_group else []

    def note_refuted(self) -> None:
        """Note that the last sum says a model is bad: that is a lie, or the sum that made the model had one in it."""
        self._add_bad(frozenset().union(*self._recent))

    def note_good(self, names: Collection[str]) -> list[str]:
        """Note a sum over `names` that may be honest; return of whom one lies, where that has become known, once."""
        self._absent.pass_one()
        self.proven.pass_one()
        self._recent = [*self._recent, self._groups_of(names)][-_JUDGED_AFTER:]
        if not self._bad:
            return []
        self._open.append(frozenset(i for i, group in enumerate(self.groups) if all(name in names for name in group)))
        if len(self._open) <= _JUDGED_AFTER:
            return []
        self._good.append(self._open.pop(0))
        found = explanations(range(len(self.groups)), self._bad, self._good)
        return [] if len(found) > 1 else self._convict(found[0] if found else frozenset())

    def _convict(self, guilty: GroupSet) -> list[str]:
        """End a search that found these groups, or none; return whose names have not been told before."""
        for group in guilty:
            self._absent.leave_out(group)
        untold = {group for group in guilty if self._times[group] >= _PROOF} - self._told
        self._bad, self._good, self._open = [], [], []
        self._told |= untold
        return sorted(self._names(untold))

    def _add_bad(self, had: GroupSet) -> None:
        self._bad.append(had)
        self._times.update(had)
        self._open, self._recent = [], []

    def _groups_of(self, names: Collection[str]) -> GroupSet:
        return frozenset(i for i, group in enumerate(self.groups) if any(name in names for name in group))

    def suspected(self, names: Collection[str]) -> list[str]:
        """Return which of `names`, who were in a bad sum, may have lied in it."""
        found = explanations(range(len(self.groups)), self._bad, self._good)
        some = self._names(frozenset().union(*found)) & frozenset(names)
        return sorted(some or names)

    def _names(self, groups: Iterable[int]) -> frozenset[str]:
        return frozenset(name for group in groups for name in self.groups[group])
