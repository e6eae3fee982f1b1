"""The groups of a plan: fixed sets of owners, of which exact sums take whole ones or none, so that none subtract."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

from agfl_protocol.randomness import SERVER, generator

Names: TypeAlias = tuple[str, ...]
_PURPOSE = "cohort"


def groups_of(members: Iterable[str], minimum: int) -> tuple[Names, ...]:
    """Cut members, in the order of SHA-256(name), into as many groups of at least `least` as there can be, or into one.

    Their sizes differ by one at most. Nobody chooses who is with whom: the order follows from the names alone.
    """
    assert minimum >= 1, minimum
    ordered = sorted(set(members), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(len(ordered) // minimum, 1)
    ends = [len(ordered) * i // count for i in range(count + 1)]
    return tuple(tuple(sorted(ordered[start:end])) for start, end in pairwise(ends))


def groups_after(
    groups: Sequence[Names], retired: Iterable[str], members: Iterable[str], minimum: int
) -> tuple[tuple[Names, ...], Names]:
    """Return the groups, and who is retired, once members have left or joined. Nothing is cut anew: two cuts subtract.

    A group that lost somebody retires: with what is left of it, sums would differ by the one who left. Who joins waits
    until `least` have. Where no group is left whole, or all are too small by now, all members are cut anew, which their
    owners must approve.
    """
    names = set(members)
    kept = tuple(group for group in groups if names.issuperset(group) and len(group) >= minimum)
    if not kept:
        return groups_of(names, minimum), ()
    grouped = {name for group in groups for name in group}
    out = names & ({*grouped, *retired} - {name for group in kept for name in group})
    joined = names - grouped - out
    return (*kept, *(groups_of(joined, minimum) if len(joined) >= minimum else ())), tuple(sorted(out))


def is_union(names: Collection[str], groups: Iterable[Names]) -> bool:
    """Whether `names` are all those of one group or more, and nobody else."""
    wanted = set(names)
    whole = {name for group in groups if wanted.issuperset(group) for name in group}
    return bool(wanted) and whole == wanted


def draw_members(members: Sequence[str], cohort_size: int | None, seed: int, exchange: int) -> Names:
    """Return the public draw of an exchange, sorted: `cohort_size` of the sorted members, or everyone."""
    names = sorted(members)
    if cohort_size is None or cohort_size >= len(names):
        return tuple(names)
    rng = generator(seed, SERVER, exchange, _PURPOSE)
    return tuple(names[i] for i in sorted(rng.choice(len(names), cohort_size, replace=False).tolist()))


def draw_groups(groups: Sequence[Names], cohort_size: int | None, seed: int, exchange: int) -> Names:
    """Return the members, sorted, of the groups that an exchange draws: one, and others that fit into `cohort_size`."""
    if cohort_size is None:
        return tuple(sorted(name for group in groups for name in group))
    order = generator(seed, SERVER, exchange, _PURPOSE).permutation(len(groups)).tolist()
    drawn: list[str] = []
    for group in (groups[i] for i in order):
        if not drawn or len(drawn) + len(group) <= cohort_size:
            drawn.extend(group)
    return tuple(sorted(drawn))
