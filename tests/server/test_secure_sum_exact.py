"""The masked sum is the plain sum of U3, to the last bit, whoever is lost when: exact or a clean abort, never wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tests.secagg_world import TRIPS, Hook, World, round_request

from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum

NEVER = len(TRIPS)  # a client is lost before its reply in trip 0, ..., 4, or never


@pytest.fixture(scope="module")
def memory_folder() -> Iterator[Path]:
    """A folder where syncing costs nothing, if there is one: thousands of exchanges are remembered here."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def lost_at(pattern: Mapping[str, int]) -> Hook:
    return lambda kind, name, content: None if TRIPS.index(kind) >= pattern[name] else content


def can_be_opened(pattern: Mapping[str, int], parameters: Parameters) -> bool:
    """Predict from SPEC.md, section 6, whether an exchange gives a sum."""
    u1, u2, u3, signers, openers = ({n for n, at in pattern.items() if at > trip} for trip in range(NEVER))
    least, quorum = parameters.least_survivors(len(u1)), parameters.quorum(len(u1))
    if len(u1) < parameters.min_cohort or min(len(u2), len(u3)) < least or len(signers) < quorum:
        return False
    wanted = (u2 - u3) | (u3 - openers)
    return not wanted or len(openers) >= parameters.threshold


def check(world: World, pattern: Mapping[str, int], round_number: int) -> CohortSum | None:
    request = round_request(round_number=round_number, exchange=round_number)
    if not can_be_opened(pattern, world.parameters):
        with pytest.raises(AttemptFailed, match="must be at least"):
            world.secure_sum(request, on_request=lost_at(pattern))
        return None
    result = world.secure_sum(request, on_request=lost_at(pattern))
    assert result.survivors == tuple(sorted(n for n, at in pattern.items() if at > 2))
    np.testing.assert_array_equal(result.lanes, world.plain_sum(result.survivors))
    assert set(result.refused) == {n for n, at in pattern.items() if at < NEVER}
    return result


def test_every_dropout_pattern_of_five_clients(memory_folder: Path) -> None:
    """Whose loss comes when is drawn: all owners do the same but for their place."""
    (folder := memory_folder / "five").mkdir()
    world, rng, opened = World.of(5, folder), random.Random(0), 0
    patterns = list(combinations_with_replacement(range(NEVER + 1), 5))
    for number, losses in enumerate(patterns, start=1):
        names = rng.sample(world.names, 5)
        opened += check(world, dict(zip(names, losses, strict=True)), number) is not None
    assert 0 < opened < len(patterns)


@pytest.mark.parametrize(("size", "samples"), [(10, 30), (60, 1)])
def test_sampled_dropout_patterns(size: int, samples: int, memory_folder: Path) -> None:
    (folder := memory_folder / f"sampled-{size}").mkdir()
    world = World.of(size, folder)
    rng = random.Random(size)
    slack = size - world.parameters.quorum(size)
    opened = 0
    for number in range(1, samples + 1):
        early = rng.sample(world.names, rng.randint(0, slack + 1 + slack // 3))
        late = {name: 4 for name in world.names if rng.random() < 0.3}
        pattern = {**dict.fromkeys(world.names, NEVER), **late, **{name: rng.randint(0, 3) for name in early}}
        opened += check(world, pattern, number) is not None
    assert opened


def test_at_three_owners_nobody_may_be_lost_before_the_last_trip(memory_folder: Path) -> None:
    (folder := memory_folder / "three").mkdir()
    world = World.of(3, folder)
    for number, pattern in enumerate(product(range(NEVER + 1), repeat=3), start=1):
        result = check(world, dict(zip(world.names, pattern, strict=True)), number)
        assert (result is None) == (min(pattern) < 4 or sum(at == 4 for at in pattern) > 1)


def test_a_vector_longer_than_one_chunk_and_no_field_at_all(memory_folder: Path) -> None:
    for number, num_lanes in enumerate((1, 2, 2**15 + 3)):
        (folder := memory_folder / f"lanes-{num_lanes}").mkdir()
        world = World.of(4, folder, num_lanes)
        check(world, dict(zip(world.names, (NEVER, 2, 4, NEVER), strict=True)), number + 1)
