"""The cohort of a round."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agfl_protocol.randomness import SERVER, generator


def sample_cohort(
    nodes: Mapping[str, int], cohort_size: int | None, seed: int, round_number: int, refused: Collection[str] = ()
) -> dict[str, int]:
    """Draw a cohort {NAME: node id} without replacement over sorted names; None takes everyone.

    refused: are left out if there are `cohort_size` others.
    """
    names = sorted(nodes)
    others = [name for name in names if name not in refused]
    if cohort_size is not None and cohort_size <= len(others):
        names = others
    if cohort_size is None or cohort_size >= len(names):
        return {name: nodes[name] for name in names}
    rng = generator(seed, SERVER, round_number, "cohort")
    chosen = sorted(rng.choice(len(names), cohort_size, replace=False).tolist())
    return {names[i]: nodes[names[i]] for i in chosen}
