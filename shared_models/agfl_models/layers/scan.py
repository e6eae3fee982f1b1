"""The linear recurrence h_t = a_t h_{t-1} + b_t over whole sequences, in about 3 sqrt(T) vector operations.

B batch, T time, H width; a sequence is cut into N chunks of C positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def linear_scan(a_BTH: Tensor, b_BTH: Tensor) -> Tensor:
    """Return h_BTH with h_t = a_t h_{t-1} + b_t and h_{-1} = 0. Differentiable; |a| <= 1 keeps it stable.

    Chunks as in Blelloch 1990, "Prefix Sums and Their Applications": first all side by side,
    each as if it began with 0, then what every chunk hands on to the next.
    """
    h_BTH: Tensor = _LinearScan.apply(a_BTH, b_BTH)  # type: ignore[no-untyped-call]
    return h_BTH


class _LinearScan(torch.autograd.Function):
    # The passes work in place, where autograd cannot follow; the gradient is one more scan, backward in time.

    @staticmethod
    def forward(a_BTH: Tensor, b_BTH: Tensor) -> Tensor:
        return _scan(a_BTH, b_BTH)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *inputs: Tensor) -> tuple[Tensor, int]:
        # Sequences of several models are a larger batch: each goes its own way.
        stacked = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(inputs, in_dims, strict=True)
        ]
        h = linear_scan(*(x.flatten(0, 1) for x in stacked))
        return h.view(*stacked[0].shape[:2], *h.shape[1:]), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a_BTH, h_BTH = ctx.saved_tensors
        grad_b = _scan_backward(a_BTH, grads[0])
        grad_a = torch.zeros_like(grad_b)
        torch.mul(grad_b[:, 1:], h_BTH[:, :-1], out=grad_a[:, 1:])
        return grad_a, grad_b


def _scan(a_BTH: Tensor, b_BTH: Tensor) -> Tensor:
    length = b_BTH.shape[1]
    a_NCBH, h_NCBH = _chunked(a_BTH, length), _chunked(b_BTH, length)
    _accumulate(a_NCBH.unbind(1), h_NCBH.unbind(1))
    _accumulate(a_NCBH[:, -1].unbind(0), h_NCBH[:, -1].unbind(0))
    h_NCBH[1:, :-1].addcmul_(a_NCBH[1:, :-1], h_NCBH[:-1, -1:])
    return _joined(h_NCBH, length)


def _scan_backward(a_BTH: Tensor, grad_BTH: Tensor) -> Tensor:
    # g_t = grad_t + a_{t+1} g_{t+1}: the same passes with a one position ahead and time reversed.
    length = grad_BTH.shape[1]
    a_NCBH, g_NCBH = _chunked(a_BTH[:, 1:], length), _chunked(grad_BTH, length)
    _accumulate(a_NCBH.unbind(1)[::-1], g_NCBH.unbind(1)[::-1])
    _accumulate(a_NCBH[:, 0].unbind(0)[::-1], g_NCBH[:, 0].unbind(0)[::-1])
    g_NCBH[:-1, 1:].addcmul_(a_NCBH[:-1, 1:], g_NCBH[1:, :1])
    return _joined(g_NCBH, length)


def _accumulate(a: tuple[Tensor, ...], h: tuple[Tensor, ...]) -> None:
    # In place: h_i becomes the scan up to i and a_i the product of the factors up to i.
    for i in range(1, len(h)):
        h[i].addcmul_(a[i], h[i - 1])
        a[i].mul_(a[i - 1])


def _chunked(x_BTH: Tensor, length: int) -> Tensor:
    # Time goes first, so that each pass reads and writes contiguous memory; zeros fill the last chunk.
    batch, given, width = x_BTH.shape
    chunk = math.isqrt(length - 1) + 1
    num_chunks = -(-length // chunk)
    x_TBH = x_BTH.new_zeros(num_chunks * chunk, batch, width)
    x_TBH[:given] = x_BTH.transpose(0, 1)
    return x_TBH.view(num_chunks, chunk, batch, width)


def _joined(x_NCBH: Tensor, length: int) -> Tensor:
    return x_NCBH.flatten(0, 1)[:length].transpose(0, 1)
