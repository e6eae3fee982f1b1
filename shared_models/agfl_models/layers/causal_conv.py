"""Gated short convolution: each channel sees its own last few positions, and gates stand before and after it.

B batch, T time, D width of the input, H hidden width, E width of the output, K length of the filter.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from agfl_models.bounded import Size
from agfl_models.layers.layer import (
    LAYERS,
    Blocks,
    Layer,
    LayerConfigBase,
    Memory,
    State,
    at_least_float32,
    init_linear,
    kept_units,
)


@LAYERS.register
class CausalConvConfig(LayerConfigBase):
    """Sizes of a causal convolution: `hidden_dim` defaults to input_dim; `kernel_size` is K, itself included."""

    type: Literal["causal_conv"] = "causal_conv"
    input_dim: Size | None = None
    hidden_dim: Size | None = None
    output_dim: Size | None = None
    kernel_size: Annotated[int, Field(ge=2, le=64)] = 4

    @property
    def is_causal(self) -> bool:
        """The filter looks back only."""
        return True

    @property
    def is_mixer(self) -> bool:
        """A position sees those right before it."""
        return True

    @property
    def stated_width(self) -> int | None:
        return self.input_dim

    @property
    def width_in(self) -> int:
        assert self.input_dim is not None
        return self.input_dim

    @property
    def width_out(self) -> int:
        assert self.output_dim is not None
        return self.output_dim

    @property
    def width_hidden(self) -> int:
        """Number of channels."""
        assert self.hidden_dim is not None
        return self.hidden_dim

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        input_dim = self.input_dim or width
        return self.filled(
            name,
            input_dim=input_dim,
            hidden_dim=self.hidden_dim or input_dim,
            output_dim=self.output_dim or (width if residual else input_dim),
        )

    def narrowed(self, width: float, name: str) -> Self:
        return self.model_copy(update={"hidden_dim": kept_units(width, self.width_hidden)})

    def num_parameters(self) -> int:
        return self._num_weights() + self.width_hidden * self.kernel_size

    def flops_per_token(self, context_length: int) -> int:
        return 2 * self._num_weights()

    def build(self) -> CausalConvLayer:
        return CausalConvLayer(self)

    def _num_weights(self) -> int:
        return self.width_hidden * (3 * self.width_in + self.width_out)


class CausalConvLayer(Layer):
    """y_t = (g_t * sum_k f_k * u_{t-K+1+k}) C with u = (x A) * (x B) and g = x G, without biases.

    A Hyena operator of order 2 (Poli et al. 2023, arXiv:2302.10866, definition 3.1) with a short filter instead of an
    implicit long one. Padding is left out before the filter, so that a position sees the K last real ones; the filter's
    sum is float32 or better. The state is the last K - 1 inputs of the filter, (u_BKH,).

    Args:
        config: sizes; those left out get their defaults.
    """

    def __init__(self, config: CausalConvConfig) -> None:
        super().__init__()
        config = config.standalone()
        self.input_dim, self.output_dim = config.width_in, config.width_out
        self.expand = nn.Linear(self.input_dim, 3 * config.width_hidden, bias=False)
        self.filter_HK = nn.Parameter(torch.empty(config.width_hidden, config.kernel_size))
        self.output = nn.Linear(config.width_hidden, self.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        u_BTH, gate_BTH = self._expanded(x_BTD)
        if mask_BT is None:
            return self._read_out(self._filtered(self._padded(u_BTH)), gate_BTH)
        # Real positions move to the left, where no padding is between them, and what the filter makes of them back;
        # padding shows what the last real position before it does.
        real_first_BT1 = torch.argsort(mask_BT.logical_not(), dim=1, stable=True).unsqueeze(-1)
        left_BTH = self._filtered(self._padded(torch.take_along_dim(u_BTH, real_first_BT1, dim=1)))
        seen_BT1 = mask_BT.long().cumsum(dim=1).unsqueeze(-1)
        filtered_BTH = torch.take_along_dim(left_BTH, (seen_BT1 - 1).clamp(min=0), dim=1) * (seen_BT1 > 0)
        return self._read_out(filtered_BTH, gate_BTH)

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        hidden, size = self.filter_HK.shape
        return (self.filter_HK.new_zeros(batch_size, size - 1, hidden),)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        y_B1E, after = self.steps(x_BD.unsqueeze(1), state)
        return y_B1E.squeeze(1), after

    def steps(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        u_BTH, gate_BTH = self._expanded(x_BTD)
        seen_BTH = torch.cat((state[0], u_BTH), dim=1)
        return self._read_out(self._filtered(seen_BTH), gate_BTH), (seen_BTH[:, u_BTH.shape[1] :],)

    def reset_parameters(self, branch_scale: float) -> None:
        init_linear(self.expand)
        nn.init.normal_(self.filter_HK, std=self.filter_HK.shape[1] ** -0.5)
        init_linear(self.output, branch_scale)

    def inner_blocks(self) -> dict[str, Blocks]:
        hidden = (self.output.in_features,)
        return {"expand.weight": (hidden * 3, ()), "filter_HK": (hidden, ()), "output.weight": ((), hidden)}

    def _expanded(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        a_BTH, b_BTH, gate_BTH = self.expand(x_BTD).chunk(3, dim=-1)
        return a_BTH * b_BTH, gate_BTH

    def _padded(self, u_BTH: Tensor) -> Tensor:
        return F.pad(u_BTH, (0, 0, self.filter_HK.shape[1] - 1, 0))

    def _filtered(self, seen_BTH: Tensor) -> Tensor:
        """Return the filter's sums at all positions but the first K - 1, which stand before the sequence."""
        filter_KH = at_least_float32(self.filter_HK).T
        num = seen_BTH.shape[1] - len(filter_KH) + 1
        sums_BTH = torch.stack([f_H * seen_BTH[:, k : k + num] for k, f_H in enumerate(filter_KH)]).sum(dim=0)
        return sums_BTH.type_as(seen_BTH)

    def _read_out(self, filtered_BTH: Tensor, gate_BTH: Tensor) -> Tensor:
        y_BTE: Tensor = self.output(gate_BTH * filtered_BTH)
        return y_BTE
