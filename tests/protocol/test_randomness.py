"""Seeds are pinned: a release that changes them can no longer repeat or resume the runs of the one before."""

from __future__ import annotations

import inspect
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_protocol.randomness import SERVER, OwnerRandomness, derive_seed, generator


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ((0, "alice", 1, "batches"), 127784560879072144),
        ((0, "alice", 1, "rounding"), 264481792713792750),
        ((7, "server", 0, "model"), 3663048446744585383),
        ((7, "server", 3, "cohort"), 3018269048268425763),
        ((123456789, "öwner-03", 2147483648, "batches"), 570955029702655426),
    ],
)
def test_seeds_are_pinned(arguments: tuple[int, str, int, str], seed: int) -> None:
    assert derive_seed(*arguments) == seed


def test_draws_are_pinned() -> None:
    rng = generator(0, "alice", 1, "batches")
    assert rng.integers(0, 1000, 5).tolist() == [196, 532, 176, 560, 915]
    assert rng.random() == 0.8067202740553048


def test_every_part_of_the_label_counts() -> None:
    labels = itertools.product((0, 1), ("alice", "bob", SERVER), (0, 1, 2), ("batches", "rounding", "cohort"))
    seeds = {label: derive_seed(*label) for label in labels}
    assert len(set(seeds.values())) == len(seeds) == 2 * 3 * 3 * 3
    assert derive_seed(1, "1", 11, "x") != derive_seed(1, "11", 1, "x")


def test_nothing_else_enters() -> None:
    """Neither the exchange nor a node id nor the configuration: a repeated round trains on the same batches."""
    assert list(inspect.signature(derive_seed).parameters) == ["run_seed", "name", "round_number", "purpose"]


@given(st.integers(0, 2**63), st.text(), st.integers(0, 2**31), st.text())
def test_seeds_are_63_bits_for_any_name(run_seed: int, name: str, round_number: int, purpose: str) -> None:
    assert 0 <= derive_seed(run_seed, name, round_number, purpose) < 2**63
    first = generator(run_seed, name, round_number, purpose).random(4)
    assert (first == generator(run_seed, name, round_number, purpose).random(4)).all()


def test_an_owners_draws_are_pinned() -> None:
    rng = OwnerRandomness(bytes(range(32))).generator("run", 1, "batches")
    assert rng.integers(0, 1000, 5).tolist() == [358, 679, 482, 120, 847]
    rng = OwnerRandomness.of_seed(0, "alice").generator("run", 1, "batches")
    assert rng.integers(0, 1000, 5).tolist() == [46, 797, 530, 712, 670]


def test_an_owners_draws_follow_from_all_that_names_them_and_from_nothing_else() -> None:
    owners = [OwnerRandomness(bytes([i] * 32)) for i in (0, 1, 2)]
    labels = list(itertools.product(("r", "r1", "s"), (0, 1, 11), ("batches", "rounding", "1batches")))
    first = {(i, label): own.generator(*label).random(2).tobytes() for i, own in enumerate(owners) for label in labels}
    assert len(set(first.values())) == len(owners) * len(labels)
    again = {(i, label): own.generator(*label).random(2).tobytes() for i, own in enumerate(owners) for label in labels}
    assert again == first, "the same bits whenever an exchange is asked for again"


def test_simulated_owners_draw_alike_in_all_runs_of_a_seed() -> None:
    """So that a simulation repeats; the run's id is random."""
    owners = [OwnerRandomness.of_seed(seed, name) for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    draws = [[own.generator(run, 1, "batches").random(2).tobytes() for run in ("r", "s")] for own in owners]
    assert all(one == other for one, other in draws)
    assert len({one for one, _ in draws}) == len(owners)


def test_an_owners_secret_is_whole_and_never_shown() -> None:
    secret = b"sixteen or more bytes, not shown"
    assert "sixteen" not in repr(OwnerRandomness(secret))
    assert secret.hex() not in repr(OwnerRandomness(secret))
    with pytest.raises(AssertionError):
        OwnerRandomness(secret[:31])
