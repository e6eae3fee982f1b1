"""Batches of several owners as one stack of tensors: padded to one shape, so that what is added counts for nothing.

K owners, B rows of the longest batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from agfl_models.tasks.task import IGNORED

_TARGETS = frozenset({"targets", "labels"})  # see `SplitLoss`


class NotStackable(Exception):
    """What these owners train cannot be computed for several at once; the text says why."""


@dataclass(frozen=True)
class Stacked:
    """pattern: the first owner's batch, with all that is no tensor; tensors: by field, each (K, B, ...).

    is_real: which rows are an owner's own, bool (K, B).
    """

    pattern: Any
    tensors: Mapping[str, Tensor | tuple[Tensor, ...]]
    is_real: Tensor

    @staticmethod
    def of(batches: Sequence[Any], device: str) -> Stacked:
        """Stack batches of one task, dataclasses of tensors with a row an example, and put them on a device.

        Raises:
            NotStackable: examples of a user's own task have other shapes at other owners: nobody knows what pads them.
        """
        tensors: dict[str, Tensor | tuple[Tensor, ...]] = {}
        rows: list[int] = []
        for one in fields(batches[0]):
            values = [getattr(batch, one.name) for batch in batches]
            if isinstance(values[0], Tensor):
                rows = rows or [len(value) for value in values]
                tensors[one.name] = _padded(values, is_target=one.name in _TARGETS).to(device)
            elif isinstance(values[0], tuple) and values[0] and isinstance(values[0][0], Tensor):
                rows = rows or [len(value[0]) for value in values]
                columns = list(zip(*values, strict=True))
                if any(len({(tensor.shape[1:], tensor.dtype) for tensor in column}) > 1 for column in columns):
                    raise NotStackable("the task's examples have other shapes at other owners")
                tensors[one.name] = tuple(_padded(column, is_target=False).to(device) for column in columns)
        is_real = torch.arange(max(rows)) < torch.tensor(rows)[:, None]
        return Stacked(batches[0], tensors, is_real.to(device))

    def of_owner(self, tensors: Mapping[str, Tensor | tuple[Tensor, ...]]) -> Any:
        """Return one owner's batch, of its tensors."""
        return replace(self.pattern, **tensors)


def _padded(tensors: Sequence[Tensor], *, is_target: bool) -> Tensor:
    """Return (K, ...): rows that are missing are the owner's first one once more, with nothing to be predicted.

    An example that is too short gets `IGNORED` as targets, and as anything else 0, which a mask of its batch calls no
    real position.
    """
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    whole = tensors[0].new_full((len(tensors), *shape), IGNORED if is_target else 0)
    for place, tensor in zip(whole, tensors, strict=True):
        place[tuple(slice(size) for size in tensor.shape)] = tensor
        if not is_target:
            place[len(tensor) :] = place[0].clone()
    return whole
