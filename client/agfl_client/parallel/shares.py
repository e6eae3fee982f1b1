"""A batch in shares, a rank each: dealt out by the node, taken in by the others, and made one loss again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from agfl_client.parallel.link import GiveUp, LastShare, Line, Share
from agfl_models.tasks.batch_rows import num_rows, rows_of
from agfl_models.tasks.task import Dataset


class GivenUpError(Exception):
    """The node has given the round up."""


class Shares:
    """What both sides have in common: whether this rank's rows count, and the loss of all ranks' rows."""

    def __init__(self) -> None:
        self._is_real = True

    def total(self, loss: Tensor, predictions: int) -> tuple[Tensor, int]:
        """Return the loss of the whole batch and its predictions, of those of this rank's rows.

        The value is that of all ranks. The gradient is that of this rank times their number, since what joins the
        gradients takes the mean.
        """
        if not self._is_real:
            loss, predictions = loss * 0, 0
        sums = torch.tensor([float(loss.detach()), predictions], dtype=torch.float64)
        dist.all_reduce(sums)
        whole, own = sums[0].to(loss), loss * dist.get_world_size()
        return own + (whole - own).detach(), int(sums[1])

    def validation(self, batch_size: int, max_examples: int) -> Iterator[Any]:
        """Nobody evaluates on shares."""
        return iter(())

    def sample_validation(self, batch_size: int, num_examples: int, rng: np.random.Generator) -> Iterator[Any]:
        """Nobody evaluates on shares."""
        return iter(())


class Dealer(Shares):
    """The node's data: each batch is dealt out, and what is left is the node's own share.

    check_deadline: as that of `LocalWork`, looked at before a batch is dealt, so that all ranks stop at the same one.
    """

    def __init__(self, dataset: Dataset[Any], others: Sequence[Line], check_deadline: Callable[[], None]) -> None:
        super().__init__()
        self._dataset, self._others, self._check_deadline = dataset, others, check_deadline

    def sample(self, batch_size: int, rng: np.random.Generator) -> Any:
        """Return this rank's share of a training batch; raises PolicyViolation once the owner's time is over."""
        return self._deal(self._dataset.sample(batch_size, rng), rng)

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
        """Yield this rank's shares of the training examples; raises as `sample`."""
        for batch in self._dataset.epoch(batch_size, rng):
            yield self._deal(batch, rng)
        for line in self._others:
            line.send(LastShare())

    def _deal(self, batch: Any, rng: np.random.Generator) -> Any:
        self._check_deadline()
        own, *others = split(batch, 1 + len(self._others))
        for line, (rows, is_real) in zip(self._others, others, strict=True):
            line.send(Share(rows, is_real, rng.bit_generator.state))
        self._is_real = own[1]
        return own[0]


class Inbox(Shares):
    """Another rank's data: what the node sends."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def sample(self, batch_size: int, rng: np.random.Generator) -> Any:
        """Return the next share; raises GivenUpError."""
        return self._take(self._line.receive(), rng)

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
        """Yield shares until the last one; raises GivenUpError."""
        while not isinstance(found := self._line.receive(), LastShare):
            yield self._take(found, rng)

    def _take(self, found: object, rng: np.random.Generator) -> Any:
        if isinstance(found, GiveUp):
            raise GivenUpError
        assert isinstance(found, Share), found
        rng.bit_generator.state = found.draws
        self._is_real = found.is_real
        return found.rows


def split(batch: Any, count: int) -> list[tuple[Any, bool]]:
    """Return `count` shares of a batch, and whether each counts: one that would be empty is the first row instead."""
    size = num_rows(batch)
    bounds = [size * rank // count for rank in range(count + 1)]
    return [
        (rows_of(batch, *pair), True) if pair[0] < pair[1] else (rows_of(batch, 0, 1), False)
        for pair in pairwise(bounds)
    ]
