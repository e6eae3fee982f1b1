"""The cohort of a round."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agfl_protocol.randomness import SERVER, generator


@dataclass(frozen=True)
class Draw:
    """By what an exchange's cohort is drawn. excluded: are never in it; avoided: only where others are too few."""

    seed: int
    exchange: int
    excluded: Collection[str] = ()
    avoided: Collection[str] = ()


def sample_cohort(
    nodes: Mapping[str, int], cohort_size: int | None, seed: int, round_number: int, refused: Collection[str] = ()
) -> dict[str, int]:
    """Draw a cohort {NAME: node id} without replacement over sorted names; None takes everyone.

    refused: are left out if there are `cohort_size` others.
    """
    return {name: nodes[name] for name in sample_names(sorted(nodes), cohort_size, seed, round_number, refused)}


def sample_names(
    names: Sequence[str], cohort_size: int | None, seed: int, round_number: int, refused: Collection[str] = ()
) -> list[str]:
    """Draw as `sample_cohort` does, of sorted names of which only those are looked at that are drawn or refused."""
    out = sorted(place for name in set(refused) if (place := place_of(name, names)) is not None)
    if cohort_size is None or cohort_size > len(names) - len(out):
        out = []
    count = len(names) - len(out)
    if cohort_size is None or cohort_size >= count:
        return [name for place, name in enumerate(names) if place not in out]
    rng = generator(seed, SERVER, round_number, "cohort")
    chosen = sorted(rng.choice(count, cohort_size, replace=False).tolist())
    for place in out:  # the n-th of the others
        chosen = [one + (one >= place) for one in chosen]
    return [names[place] for place in chosen]


def num_others(names: Sequence[str], out: Collection[str]) -> int:
    """Return how many of sorted names are not in `out`."""
    return len(names) - sum(place_of(name, names) is not None for name in set(out))


def place_of(name: str, names: Sequence[str]) -> int | None:
    """Return where a name stands among sorted ones; None where it does not."""
    place = bisect_left(names, name)
    return place if place < len(names) and names[place] == name else None
