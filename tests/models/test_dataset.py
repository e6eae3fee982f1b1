"""An honest split, examples that come exactly once, and padding that marks itself."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agfl_models.tasks.dataset import ExampleDataset, pad, real_positions, split_rows
from agfl_models.tasks.translation import TranslationConfig, TranslationRow

SOURCES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4).filter(lambda text: text.strip()))
FRACTION = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])


def rows_of(sources: list[str]) -> list[TranslationRow]:
    return [TranslationRow(source=source, target=f"{source}{i}") for i, source in enumerate(sources)]


@given(SOURCES, FRACTION)
def test_split_divides_the_rows_and_shares_no_source(sources: list[str], fraction: float) -> None:
    rows = rows_of(sources)
    train, held_out = split_rows(rows, fraction)
    assert Counter(train) + Counter(held_out) == Counter(rows)
    assert not {row.source for row in train} & {row.source for row in held_out}
    assert [row for row in rows if row in set(train)] == train, "in the given order"
    distinct = len(set(sources))
    if fraction == 0 or distinct < 2:
        assert not held_out
    else:
        assert 1 <= len({row.source for row in held_out}) < distinct


@given(SOURCES.flatmap(lambda sources: st.tuples(st.just(sources), st.permutations(sources))), FRACTION)
def test_split_depends_on_neither_order_nor_copies(lists: tuple[list[str], list[str]], fraction: float) -> None:
    sources, shuffled = lists
    held_out = [row.source for row in split_rows(rows_of(sources), fraction)[1]]
    assert [row.source for row in split_rows(rows_of(shuffled), fraction)[1]] == held_out
    assert {row.source for row in split_rows(rows_of(sources + sources), fraction)[1]} == set(held_out)


def test_no_two_owners_split_the_same_source_differently() -> None:
    pool = [f"source {i}" for i in range(400)]
    owners = [np.random.default_rng(i).permutation(pool)[:200].tolist() for i in range(10)]
    splits = [split_rows(rows_of(owner), 0.1) for owner in owners]
    trained = {row.source for train, _ in splits for row in train}
    assert not trained & {row.source for _, held_out in splits for row in held_out}


def test_held_out_is_the_fraction_with_the_smallest_digests() -> None:
    sources = [str(i) for i in range(2000)]
    held_out = [row.source for row in split_rows(rows_of(sources), 0.25)[1]]
    digests = [hashlib.sha256(source.encode()).hexdigest() for source in held_out]
    assert digests == sorted(digests), "an order that the owner's files do not choose"
    assert {source for source in sources if hashlib.sha256(source.encode()).digest()[0] < 64} == set(held_out)
    assert len(held_out) == pytest.approx(500, abs=5 * np.sqrt(2000 * 0.25 * 0.75))


@given(SOURCES, FRACTION)
def test_a_tokenizer_learns_from_what_is_trained_on(sources: list[str], fraction: float) -> None:
    config = TranslationConfig(type="translation", validation_fraction=fraction)
    train, _ = split_rows(rows_of(sources), fraction)
    assert config.training_texts(rows_of(sources)) == [text for row in train for text in (row.source, row.target)]


class Numbers(list[int]):
    """The least that is a batch."""

    def to(self, device: str) -> Numbers:
        return self


@given(st.integers(1, 12), st.integers(0, 9), st.integers(1, 5), st.integers(0, 9), st.integers(0, 2**32))
def test_an_epoch_has_every_example_once_and_validation_the_first_ones(
    num_train: int, num_held_out: int, batch_size: int, most: int, seed: int
) -> None:
    train, held_out = list(range(num_train)), [-10, 30, 7, -2, 0, 5, -8, 9, 1][:num_held_out]
    dataset = ExampleDataset(train, held_out, Numbers, abs)
    rng = np.random.default_rng(seed)
    batches = list(dataset.epoch(batch_size, rng))
    assert sorted(number for batch in batches for number in batch) == train
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    validated = [number for batch in dataset.validation(batch_size, most) for number in batch]
    assert validated == sorted(held_out[:most], key=abs)
    assert len(dataset.sample(batch_size, rng)) == batch_size


@pytest.mark.parametrize("batch_size", [1, 2, 5, 50])
def test_every_example_is_drawn_as_often_beside_ones_of_its_size(batch_size: int) -> None:
    dataset = ExampleDataset(np.random.default_rng(1).permutation(32).tolist(), [], Numbers, int)
    rng = np.random.default_rng(0)
    batches = [dataset.sample(batch_size, rng) for _ in range(20_000 // batch_size)]
    counts = Counter(number for batch in batches for number in batch)
    assert sorted(counts) == list(range(32))
    # Draws of one batch go together: at worst a whole batch is one draw.
    assert all(abs(count - 625) < 5 * np.sqrt(625 * batch_size) for count in counts.values())
    distances = {(number - batch[0] + 16) % 32 - 16 for batch in batches for number in batch}
    assert max(map(abs, distances)) == (min(4 * batch_size - 1, 16) if batch_size > 1 else 0)


@given(st.integers(0, 12), st.integers(0, 40), st.integers(1, 7), st.integers(0, 2**32))
def test_drawn_validation_has_exactly_as_many_as_asked_for_and_shows_no_size(
    num_held_out: int, num_examples: int, batch_size: int, seed: int
) -> None:
    dataset = ExampleDataset([], list(range(num_held_out)), Numbers, abs)
    batches = list(dataset.sample_validation(batch_size, num_examples, np.random.default_rng(seed)))
    drawn = [number for batch in batches for number in batch]
    assert len(drawn) == (num_examples if num_held_out else 0)
    assert set(drawn) <= set(range(num_held_out))
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_every_held_out_example_is_drawn_as_often_with_replacement_and_afresh() -> None:
    dataset = ExampleDataset([], list(range(32)), Numbers, abs)
    rng = np.random.default_rng(0)
    draws = [[n for batch in dataset.sample_validation(10, 32, rng) for n in batch] for _ in range(625)]
    counts = Counter(number for drawn in draws for number in drawn)
    assert all(abs(counts[number] - 625) < 5 * np.sqrt(625) for number in range(32))
    assert len(set(map(tuple, draws))) == len(draws), "no two draws are alike"
    repeated = np.mean([32 - len(set(drawn)) for drawn in draws])
    assert repeated == pytest.approx(32 * (31 / 32) ** 32, abs=0.5), "as many are missing as chance leaves out"


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_neighborhood_has_no_more_examples_than_draws_and_varies_more_than_free_draws(batch_size: int) -> None:
    """What one batch tells is of `batch_size` examples at most, and how batches differ hides no less."""
    numbers = np.random.default_rng(1).permutation(256).tolist()
    dataset = ExampleDataset(numbers, [], Numbers, int)
    rng = np.random.default_rng(0)
    batches = [dataset.sample(batch_size, rng) for _ in range(4000)]
    distinct = [len(set(batch)) for batch in batches]
    assert max(distinct) == batch_size
    assert min(distinct) < batch_size, "drawn with replacement"
    free = rng.choice(numbers, (4000, batch_size))
    assert np.var([np.mean(batch) for batch in batches]) > np.var(free.mean(axis=1))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 2**32))
def test_an_epoch_pads_less_than_batches_in_order_of_the_shuffle(sizes: list[int], batch_size: int, seed: int) -> None:
    dataset = ExampleDataset(sizes, [], Numbers, int)
    batches = list(dataset.epoch(batch_size, np.random.default_rng(seed)))
    pools = -(-len(sizes) // (4 * batch_size))
    assert sum(max(batch) - min(batch) for batch in batches) <= pools * (max(sizes) - min(sizes))


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5))
def test_padding_can_be_told_from_what_is_real(sequences: list[list[int]]) -> None:
    padded: Tensor = pad(sequences, -1)
    mask = real_positions(sequences)
    assert padded.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    assert [row[real].tolist() for row, real in zip(padded, mask, strict=True)] == sequences
    assert torch.equal(padded == -1, ~mask)
