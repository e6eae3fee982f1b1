"""What a client computes in a round and what the server learns of it: one update, and the total over the cohort.

Legend: d = number of model parameters, K = number of parameter tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agfl_models.model.sequence_model import trained_parameters

Vector: TypeAlias = NDArray[np.float32]
CHUNK = 2**13  # elements: from 10^4 on BLAS wakes its threads, which burn processor time waiting
_WIDE = 2**20  # elements that are in double precision at a time


@dataclass(frozen=True)
class Layout:
    """Where each parameter tensor lies in the flat model vector: names and shapes in the model's own order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(model: nn.Module) -> Layout:
        """Return the layout of `model`'s trained parameters; a tied parameter counts once."""
        items = trained_parameters(model).items()
        return Layout(tuple(n for n, _ in items), tuple(tuple(p.shape) for _, p in items))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor, (K,)."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """Number of model parameters d."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Each tensor's place in the flat vector, (K,)."""
        ends = np.cumsum(self.sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def flatten(self, model: nn.Module) -> Vector:
        """Return a copy of `model`'s trained parameters as one float32 vector (d,)."""
        parts = [p.detach().to("cpu", torch.float32).reshape(-1) for p in trained_parameters(model).values()]
        return torch.cat(parts).numpy()

    def load(self, model: nn.Module, vector: Vector) -> None:
        """Copy the flat `vector` (d,) into `model`'s trained parameters."""
        assert vector.shape == (self.size,), (vector.shape, self.size)
        with torch.no_grad():
            for parameter, part in zip(trained_parameters(model).values(), self.parts(vector), strict=True):
                parameter.copy_(part)

    def parts(self, vector: NDArray[np.floating[Any]]) -> Iterator[torch.Tensor]:
        """Yield the tensors of `vector` (d,), on the CPU: views, but copies of one that is not writeable."""
        for place, shape in zip(self.slices, self.shapes, strict=True):
            part = vector[place]  # of a message that came it is not writeable, and PyTorch would complain
            yield torch.from_numpy(part if part.flags.writeable else part.copy()).view(shape)

    def split(self, vector: NDArray[np.floating[Any]]) -> list[torch.Tensor]:
        """Return all that `parts` yields."""
        return list(self.parts(vector))

    def state_dict(self, vector: Vector) -> dict[str, torch.Tensor]:
        """Return `vector` (d,) as named tensors, as `nn.Module.state_dict` holds them."""
        return dict(zip(self.names, self.split(vector), strict=True))


@dataclass(frozen=True)
class Update:
    """One client's contribution to a round, before it becomes integers: `gain * delta`.

    delta: local model minus global model, float32 (d,); empty where the round only evaluates.
    weight: this client's weight in the mean; 0 where it adds nothing.
    metrics: what else enters the sum, all >= 0 (loss sums, token counts, ...).
    loss: of the broadcast model on this client's training data, in the task's unit a prediction.
    steps: how many steps of training the delta is worth, > 0; see `agfl_client.training.trainer.effective_steps`.
    gain: the factor by which methods scale the delta, applied when it is quantized, so that no copy is made.
    """

    delta: Vector
    weight: float
    metrics: Mapping[str, float]
    loss: float = 0.0
    steps: float = 1.0
    gain: float = 1.0

    @cached_property
    def norm(self) -> float:
        """L2 norm of `gain * delta`; NaN or infinity just where the delta is not finite."""
        return self.gain * math.sqrt(square_sum(self.delta))


@dataclass(frozen=True)
class Total:
    """The sum over a cohort, all that the server needs. delta: sum of the weighted deltas, float32 (d,)."""

    delta: Vector
    count: int
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """What a sum means, by which the server steps.

    delta: weighted mean of the deltas, float32 (d,). metrics: sums still, over the `count` owners of the cohort.
    owners: how many the federation has; 0 where nobody asks, as on a client.
    """

    delta: Vector
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    owners: int = 0


def inner_product(left: NDArray[np.floating[Any]], right: NDArray[np.floating[Any]]) -> float:
    """Return the sum of products of two vectors (d,) to six digits."""
    chunks = (slice(start, start + CHUNK) for start in range(0, left.size, CHUNK))
    return sum(float(np.dot(left[chunk], right[chunk])) for chunk in chunks)


def square_sum(vector: NDArray[np.floating[Any]]) -> float:
    """Return the sum of squares to six digits; infinite or NaN just where `vector` is not finite."""
    parts = [vector[start : start + CHUNK] for start in range(0, vector.size, CHUNK)]
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(float(np.dot(part, part)) for part in parts)
        if math.isfinite(total):
            return total
        return sum(float(np.dot(wide, wide)) for wide in (part.astype(np.float64) for part in parts))


def wide_norm(vector: Vector) -> float:
    """Return the L2 norm of a vector (d,), in double precision."""
    wide = (vector[start : start + _WIDE].astype(np.float64) for start in range(0, vector.size, _WIDE))
    return math.sqrt(sum(float(np.dot(part, part)) for part in wide))
