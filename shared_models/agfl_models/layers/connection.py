"""What surrounds a layer: normalization, the residual sum, and linear bridges between unequal widths.

B batch, T time, W width of what flows between layers, D width of the layer's input, E width of its output.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from agfl_models.layers.layer import Layer, Memory, State, at_least_float32, init_linear

Norm = Literal["rmsnorm", "layernorm", "none"]
Residual = Literal["pre", "post", "none"]

NORM_EPSILON = 1e-5


class SublayerConnection(nn.Module):
    """Norm placement and residual sum around one layer, which the caller owns.

    pre: x + f(norm(x)) (Xiong et al. 2020, arXiv:2002.04745); post: norm(x + f(x)) (Vaswani et al. 2017,
    arXiv:1706.03762); none: f(norm(x)). Here f is the layer between its bridges; a bridge is a matrix without
    bias and exists only where widths differ. The name is the Annotated Transformer's.

    Args:
        width: W.
        layer_in: D.
        layer_out: E.
    """

    def __init__(self, width: int, layer_in: int, layer_out: int, residual: Residual, norm: Norm) -> None:
        super().__init__()
        self.residual = residual
        self.norm = build_norm(norm, width)
        self.bridge_in = nn.Linear(width, layer_in, bias=False) if layer_in != width else None
        needs_bridge_out = residual != "none" and layer_out != width
        self.bridge_out = nn.Linear(layer_out, width, bias=False) if needs_bridge_out else None

    def forward(
        self, x_BTW: Tensor, layer: Layer, mask_BT: Tensor | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Return (B, T, W), or (B, T, E) without a residual sum."""
        y_BTE: Tensor = layer(self._enter(x_BTW), mask_BT, memory)
        return self._leave(x_BTW, y_BTE)

    def step(self, x_BW: Tensor, layer: Layer, state: State) -> tuple[Tensor, State]:
        """Return (B, W), or (B, E) without a residual sum, and the layer's new state."""
        y_BE, state = layer.step(self._enter(x_BW), state)
        return self._leave(x_BW, y_BE), state

    def steps(self, x_BTW: Tensor, layer: Layer, state: State) -> tuple[Tensor, State]:
        """Return (B, T, W), or (B, T, E) without a residual sum, and the layer's new state."""
        y_BTE, state = layer.steps(self._enter(x_BTW), state)
        return self._leave(x_BTW, y_BTE), state

    def reset_parameters(self, branch_scale: float) -> None:
        """Draw the bridges; see `Layer.reset_parameters`."""
        if self.bridge_in is not None:
            init_linear(self.bridge_in)
        if self.bridge_out is not None:
            init_linear(self.bridge_out, branch_scale)

    def _enter(self, x: Tensor) -> Tensor:
        if self.residual != "post":
            x = self.norm(x)
        return x if self.bridge_in is None else self.bridge_in(x)

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        if self.bridge_out is not None:
            y = self.bridge_out(y)
        if self.residual != "none":
            y = x + y
        return self.norm(y) if self.residual == "post" else y


def connection_parameters(width: int, layer_in: int, layer_out: int, residual: Residual, norm: Norm) -> int:
    """Return the number of parameters of a `SublayerConnection` with these arguments."""
    return norm_parameters(norm, width) + bridge_weights(width, layer_in, layer_out, residual)


def bridge_weights(width: int, layer_in: int, layer_out: int, residual: Residual) -> int:
    """Return the number of weights in the bridges of a `SublayerConnection` with these arguments."""
    bridge_in = width * layer_in if layer_in != width else 0
    bridge_out = layer_out * width if residual != "none" and layer_out != width else 0
    return bridge_in + bridge_out


class RMSNorm(nn.Module):
    """y = g * x / rms(x): Zhang and Sennrich 2019, arXiv:1910.07467. Faster on a CPU than torch's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean_square = at_least_float32(x).square().mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(mean_square + NORM_EPSILON).type_as(x) * self.weight


def build_norm(norm: Norm, width: int) -> nn.Module:
    """Return the normalization over the last dimension, `width` wide."""
    if norm == "rmsnorm":
        return RMSNorm(width)
    return nn.LayerNorm(width, eps=NORM_EPSILON) if norm == "layernorm" else nn.Identity()


def norm_parameters(norm: Norm, width: int) -> int:
    """Return the number of parameters of `build_norm(norm, width)`."""
    return {"rmsnorm": 1, "layernorm": 2, "none": 0}[norm] * width
