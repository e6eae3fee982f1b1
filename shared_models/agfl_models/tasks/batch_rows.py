"""Some rows of a batch: a dataclass of tensors and tuples, a row of each an example, or of tuples of such tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def num_rows(batch: Any) -> int:
    """Return how many examples a batch has."""
    while not isinstance(batch, Tensor):
        batch = batch[0] if isinstance(batch, tuple) else getattr(batch, fields(batch)[0].name)
    return int(batch.shape[0])


def rows_of(batch: Any, start: int, stop: int) -> Any:
    """Return its rows `start` to `stop`, copied."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{one.name: rows_of(getattr(batch, one.name), start, stop) for one in fields(batch)})
    if isinstance(batch, tuple) and all(isinstance(one, Tensor) for one in batch):
        return tuple(rows_of(one, start, stop) for one in batch)
    # Contiguous and on its own: a view would be sent with all of its storage.
    return batch[start:stop].clone() if isinstance(batch, Tensor) else batch[start:stop]


@dataclass
class MicroBatch:
    """What a device can hold of a batch at a time.

    max_rows: rows; None for all, as long as its memory is enough for them. recomputes: whether the backward pass makes
    do with what goes into each block; see `recomputed`.
    """

    max_rows: int | None = None
    recomputes: bool = False

    def pieces(self, batch: Any) -> Sequence[Any]:
        """Return the batch in so many rows each, in order."""
        if self.max_rows is None:
            return [batch]
        starts = range(0, num_rows(batch), self.max_rows)
        return [rows_of(batch, start, start + self.max_rows) for start in starts]

    def halve(self, batch: Any) -> bool:
        """Take half as many from now on; return whether there was anything to halve."""
        rows = min(num_rows(batch), self.max_rows or num_rows(batch))
        self.max_rows = max(1, rows // 2)
        return rows > 1
