"""The cohort of a round."""

from __future__ import annotations

from collections.abc import Mapping

from agfl_protocol.randomness import SERVER, generator


def sample_cohort(nodes: Mapping[str, int], cohort_size: int | None, seed: int, round_number: int) -> dict[str, int]:
    """Draw a cohort {NAME: node id} without replacement over sorted names; None takes everyone."""
    names = sorted(nodes)
    if cohort_size is None or cohort_size >= len(names):
        return {name: nodes[name] for name in names}
    rng = generator(seed, SERVER, round_number, "cohort")
    chosen = sorted(rng.choice(len(names), cohort_size, replace=False).tolist())
    return {names[i]: nodes[names[i]] for i in chosen}
