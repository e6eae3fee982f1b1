"""Running a model at less than its width: with its outer rings at zero it computes what the narrower model does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agfl_models.model.sequence_model import trained_parameters
from agfl_protocol.update import Layout


class NestedWidths:
    """The rings of a model of `num_rings`. ring: of each element of its flat vector (d,), from 0."""

    def __init__(self, model: nn.Module, layout: Layout, ring: NDArray[np.uint8], num_rings: int) -> None:
        self.num_rings = num_rings
        parameters = trained_parameters(model).values()
        pieces = torch.split(torch.from_numpy(ring), list(layout.sizes))
        shaped = [piece.view(shape) for piece, shape in zip(pieces, layout.shapes, strict=True)]
        self._nested = [(p, own.to(p.device)) for p, own in zip(parameters, shaped, strict=True) if own.any()]

    def of_step(self, number: int, rng: np.random.Generator) -> AbstractContextManager[None]:
        """Let the model have the width of a step of training: in every other one its own, else a narrower one.

        So all widths are trained, the widest most: MatFormer, Devvrit et al. 2023, arXiv:2310.07707, section 3.2.
        """
        is_whole = number % 2 == 0 or self.num_rings == 1
        return nullcontext() if is_whole else self.at(int(rng.integers(1, self.num_rings)))

    @contextmanager
    def at(self, num_rings: int) -> Iterator[None]:
        """Let the model be that of its first `num_rings` rings; the gradient of all others is then zero."""
        outer = [(parameter, ring >= num_rings) for parameter, ring in self._nested]
        kept = [(parameter, mask, parameter.detach()[mask]) for parameter, mask in outer if mask.any()]
        with torch.no_grad():
            for parameter, mask, _ in kept:
                parameter.masked_fill_(mask, 0.0)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, mask, values in kept:
                    parameter[mask] = values
