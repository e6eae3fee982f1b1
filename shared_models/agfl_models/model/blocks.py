"""The blocks that any model is a row of, and how a backward pass makes do with what goes into each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what a model has in outermost lists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks_of(child)


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Have forward passes keep what goes into a block, and the backward pass compute once more what is inside.

    The gradients are the same (Chen et al. 2016, arXiv:1604.06174) where a block's output follows from its input and
    PyTorch's own generator; a step takes about a third longer.
    """
    blocks = list(dict.fromkeys(blocks_of(model)))  # one may stand in a model twice
    own = [vars(block).get("forward") for block in blocks]
    is_inside = [False]
    try:
        for block in blocks:
            block.forward = _recomputed(block.forward, is_inside)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def _recomputed(forward: Callable[..., Any], is_inside: list[bool]) -> Callable[..., Any]:
    def once_more(*arguments: Any, **named: Any) -> Any:
        if is_inside[0]:  # a block of our stacks gets another one, and computes it
            return forward(*arguments, **named)
        is_inside[0] = True
        try:
            return checkpoint(forward, *arguments, use_reentrant=False, **named)
        finally:
            is_inside[0] = False

    return once_more
