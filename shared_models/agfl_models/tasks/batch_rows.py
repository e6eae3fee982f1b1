"""Some rows of a batch: a dataclass of tensors and tuples, a row of each an example, or of tuples of such tensors."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
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
