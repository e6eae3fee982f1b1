"""What the tasks share that learn from examples: an honest split, and batches of padded examples.

Legend: B batch, T longest sequence of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from agfl_models.examples import RowT
from agfl_models.tasks.task import BatchT

ExampleT = TypeVar("ExampleT")
NEIGHBORS = 4  # batches that are made of one neighborhood of examples


def split_rows(rows: Sequence[RowT], fraction: float) -> tuple[list[RowT], list[RowT]]:
    """Return (training, validation) rows: the first in the given order, the second in the order of their digests.

    A row is held out if the SHA-256 of its source, as a number in [0, 1), is below `fraction`. So the split depends on
    nothing but the source: two splits never share one, not even those of two owners that hold the same text. Only
    where an owner would have nothing to train on, or two different sources and nothing held out, one source changes
    sides.
    """
    if fraction == 0:
        return list(rows), []
    digests = [hashlib.sha256(row.split_key).digest() for row in rows]
    distinct = sorted(set(digests))
    count = sum(int.from_bytes(digest, "big") < fraction * 2.0**256 for digest in distinct)
    count = min(max(count, 1), len(distinct) - 1)
    held_out = set(distinct[:count])
    pairs = list(zip(rows, digests, strict=True))
    validation = sorted((pair for pair in pairs if pair[1] in held_out), key=lambda pair: pair[1])
    return [row for row, digest in pairs if digest not in held_out], [row for row, _ in validation]


@dataclass(frozen=True)
class ExampleDataset(Generic[ExampleT, BatchT]):
    """One owner's examples; `collate` makes a batch of some of them, padded to the longest by `size`.

    Batches are made of examples of about the same size, so that little time goes into padding.
    """

    train: Sequence[ExampleT]
    held_out: Sequence[ExampleT]
    collate: Callable[[Sequence[ExampleT]], BatchT]
    size: Callable[[ExampleT], int]

    def sample(self, batch_size: int, rng: np.random.Generator) -> BatchT:
        """Return `batch_size` training examples drawn with replacement from neighbors in the order of size.

        The place of the neighborhood is drawn from a circle, so every example is as likely as every other. A batch has
        `batch_size` different examples at most, and often fewer.
        """
        neighbors = min(NEIGHBORS * batch_size, len(self.train))
        places = rng.integers(len(self.train)) + rng.integers(0, neighbors, batch_size)
        return self.collate([self._by_size[i % len(self.train)] for i in places.tolist()])

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[BatchT]:
        """Yield every training example once, in random order."""
        shuffled = [self.train[i] for i in rng.permutation(len(self.train)).tolist()]
        pools = _cut(shuffled, NEIGHBORS * batch_size)
        batches = [batch for pool in pools for batch in _cut(sorted(pool, key=self.size), batch_size)]
        for i in rng.permutation(len(batches)).tolist():
            yield self.collate(batches[i])

    def validation(self, batch_size: int, max_examples: int) -> Iterator[BatchT]:
        """Yield the first `max_examples` held-out examples by size; nothing where nothing is held out."""
        for batch in _cut(sorted(self.held_out[:max_examples], key=self.size), batch_size):
            yield self.collate(batch)

    def sample_validation(self, batch_size: int, num_examples: int, rng: np.random.Generator) -> Iterator[BatchT]:
        """Yield `num_examples` held-out examples, each drawn from all of them; nothing where nothing is held out."""
        if not self.held_out:
            return
        drawn = [self.held_out[i] for i in rng.integers(len(self.held_out), size=num_examples).tolist()]
        for batch in _cut(sorted(drawn, key=self.size), batch_size):
            yield self.collate(batch)

    @cached_property
    def _by_size(self) -> Sequence[ExampleT]:
        return sorted(self.train, key=self.size)


def _cut(examples: Sequence[ExampleT], size: int) -> list[Sequence[ExampleT]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def pad(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return the sequences as int64 (B, T), filled up with `value` at their ends."""
    padded = torch.full((len(sequences), max(map(len, sequences), default=0)), value, dtype=torch.int64)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return padded


def real_positions(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the mask of `pad`, bool (B, T): True where a sequence has its own token."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
