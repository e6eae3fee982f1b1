"""Nested widths: which of a model's weights each narrower model has, and which read what only wider ones have.

A model of width r is its layers' first inner units (`ModelConfig.narrowed`). Ring 0 is the narrowest model, ring j what
width j has and width j - 1 has not. MatFormer: Devvrit et al. 2023, arXiv:2310.07707; over federations of unequal
machines: HeteroFL, Diao, Ding and Tarokh 2021, arXiv:2010.01264.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from agfl_models.errors import ConfigError
from agfl_models.layers.layer import Blocks, Layer
from agfl_models.model.config import ModelConfig
from agfl_models.model.model import AutoGenModel
from agfl_models.model.sequence_model import trained_parameters

MAX_WIDTHS = 256  # as many rings as a byte counts


@dataclass(frozen=True, eq=False)
class Rings:
    """Where the weights of nested models are in the flat vector of the whole one's.

    d elements: those of `trained_parameters(model)` in order, each parameter row by row.

    widths: ascending, the last 1; ring: (d,), the index of the first width whose model has the element; reads: (d,),
    whether what lies in an inner ring reads from an outer one through the element. Where all of them are 0, every
    width computes what the narrowest does.
    """

    widths: tuple[float, ...]
    ring: NDArray[np.uint8]
    reads: NDArray[np.bool_]

    @classmethod
    def of(cls, config: ModelConfig, widths: Sequence[float]) -> Rings:
        """Return the rings of a model, without drawing its weights.

        Raises:
            ConfigError: the widths do not ascend to 1, or the model has no such width.

        Warns:
            UserWarning: as `AutoGenModel`, of linear bridges.
        """
        _refuse_disorder(widths)
        models = [outline(config.narrowed(width)) for width in widths]
        blocks = [_inner_blocks(model) for model in models]
        rings, reads = [], []
        for name, parameter in trained_parameters(models[-1]).items():
            nested = [of_width.get(name, ((),) * parameter.dim()) for of_width in blocks]
            ring, read = _rings_of(parameter.shape, nested)
            rings.append(ring)
            reads.append(read)
        return cls(tuple(widths), np.concatenate(rings), np.concatenate(reads))

    def held(self, num_rings: int) -> NDArray[np.bool_]:
        """Return (d,), whether the model of the first `num_rings` rings has the element: these are its flat vector."""
        return self.ring < num_rings


def outline(config: ModelConfig) -> AutoGenModel:
    """Return the model with the shapes of its weights, and without their content: nothing is drawn."""
    with torch.device("meta"), _Undrawn():
        return AutoGenModel(config)


class _Undrawn(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does: on the device "meta" nothing, but it loads PyTorch's compiler first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _refuse_disorder(widths: Sequence[float]) -> None:
    ascend = all(narrow < wide for narrow, wide in pairwise(widths))
    if not ascend or not widths or widths[-1] != 1 or len(widths) > MAX_WIDTHS:
        raise ConfigError(
            "AGFL-CONFIG-118", f"widths: must ascend to 1, at most {MAX_WIDTHS} of them, got {list(widths)}"
        )


def _inner_blocks(model: AutoGenModel) -> dict[str, Blocks]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    return {
        f"{layer_name}.{name}": blocks
        for layer_name, layer in layers.items()
        for name, blocks in layer.inner_blocks().items()
    }


def _rings_of(shape: Sequence[int], nested: Sequence[Blocks]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return ring and reads of a parameter's elements; `nested` are its blocks in each width."""
    rings = [_rings_along(size, blocks) for size, blocks in zip(shape, zip(*nested, strict=True), strict=True)]
    rows, columns = (*rings, np.zeros(1, np.uint8))[:2]  # a vector is a matrix of one column, which all widths have
    return np.maximum.outer(rows, columns).ravel(), np.less.outer(rows, columns).ravel()


def _rings_along(size: int, nested: Sequence[tuple[int, ...]]) -> NDArray[np.uint8]:
    """Return the ring of each index of a dimension: the number of widths that do not have it."""
    ring, whole = np.zeros(size, np.uint8), nested[-1]
    for narrow in nested[:-1]:
        end = 0
        for kept, length in zip(narrow, whole, strict=True):
            ring[end + kept : end + length] += 1
            end += length
    return ring
