"""Recurrent cells over whole sequences and step by step: torch's GRU and LSTM, and minGRU on a parallel scan.

B batch, T time, D width of the input, H hidden width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from agfl_models.layers.layer import Blocks, State, at_least_float32, init_linear
from agfl_models.layers.scan import linear_scan


class TorchCell(nn.Module):
    """torch's GRU (Cho et al. 2014, arXiv:1406.1078) or LSTM (Hochreiter and Schmidhuber 1997)."""

    def __init__(self, kind: Literal["gru", "lstm"], width_in: int, width_hidden: int) -> None:
        super().__init__()
        kinds = {"gru": nn.GRU, "lstm": nn.LSTM}
        self.rnn: nn.GRU | nn.LSTM = kinds[kind](width_in, width_hidden, batch_first=True)
        self.is_lstm = kind == "lstm"

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        if mask_BT is None:
            h_BTH: Tensor = self.rnn(x_BTD)[0]
            return h_BTH
        # Real positions move to the left, where no padding comes before them, and their states back again;
        # padding shows the state of the last real position before it.
        real_first_BT1 = torch.argsort(mask_BT.logical_not(), dim=1, stable=True).unsqueeze(-1)
        left_BTH = self.rnn(torch.take_along_dim(x_BTD, real_first_BT1, dim=1))[0]
        seen_BT1 = mask_BT.long().cumsum(dim=1).unsqueeze(-1)
        return torch.take_along_dim(left_BTH, (seen_BT1 - 1).clamp(min=0), dim=1) * (seen_BT1 > 0)

    def initial_state(self, batch_size: int) -> State:
        zeros = self.rnn.all_weights[0][0].new_zeros(batch_size, self.rnn.hidden_size)
        return (zeros, zeros) if self.is_lstm else (zeros,)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        before = tuple(part.unsqueeze(0) for part in state)
        h_B1H, after = self.rnn(x_BD.unsqueeze(1), before if self.is_lstm else before[0])
        return h_B1H.squeeze(1), tuple(part.squeeze(0) for part in (after if self.is_lstm else (after,)))

    def reset_parameters(self) -> None:
        """Inputs keep their size, recurrent matrices are orthogonal (Saxe et al. 2013, arXiv:1312.6120).

        Biases are 0, except 1 for the LSTM's forget gate, so that it remembers (Jozefowicz et al. 2015).
        """
        weight_ih, weight_hh, bias_ih, bias_hh = (parameter.detach() for parameter in self.rnn.all_weights[0])
        nn.init.normal_(weight_ih, std=self.rnn.input_size**-0.5)
        for gate_HH in weight_hh.chunk(len(weight_hh) // self.rnn.hidden_size):
            nn.init.orthogonal_(gate_HH)
        nn.init.zeros_(bias_ih)
        nn.init.zeros_(bias_hh)
        if self.is_lstm:
            nn.init.ones_(bias_ih.chunk(4)[1])

    def inner_blocks(self) -> dict[str, Blocks]:
        """See `Layer.inner_blocks`: a block for each gate."""
        hidden = (self.rnn.hidden_size,)
        gates = hidden * (4 if self.is_lstm else 3)
        return {
            "rnn.weight_ih_l0": (gates, ()),
            "rnn.weight_hh_l0": (gates, hidden),
            "rnn.bias_ih_l0": (gates,),
            "rnn.bias_hh_l0": (gates,),
        }


class MinGRUCell(nn.Module):
    """z = sigmoid(x A + a), g = x B + b, h_t = (1 - z) * h_{t-1} + z * g.

    Feng et al. 2024, arXiv:2410.01201, section 3.1. Gates do not see the state, so all positions are computed
    at once. We scan h itself and not its logarithm: every factor 1 - z is at most 1, so nothing overflows, and g
    may be negative. Gates and state are float32 or better.
    """

    def __init__(self, width_in: int, width_hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width_in, width_hidden)
        self.value = nn.Linear(width_in, width_hidden)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        value_BTH: Tensor = self.value(x_BTD)
        z_BTH = at_least_float32(self.gate(x_BTD)).sigmoid()
        if mask_BT is not None:
            z_BTH = z_BTH * mask_BT.unsqueeze(-1)
        return linear_scan(1 - z_BTH, z_BTH * value_BTH).type_as(value_BTH)

    def initial_state(self, batch_size: int) -> State:
        return (at_least_float32(self.gate.weight).new_zeros(batch_size, self.gate.out_features),)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        value_BH: Tensor = self.value(x_BD)
        z_BH = at_least_float32(self.gate(x_BD)).sigmoid()
        h_BH = torch.lerp(state[0], value_BH.type_as(z_BH), z_BH)
        return h_BH.type_as(value_BH), (h_BH,)

    def reset_parameters(self) -> None:
        init_linear(self.gate)
        init_linear(self.value)

    def inner_blocks(self) -> dict[str, Blocks]:
        """See `Layer.inner_blocks`."""
        hidden = (self.gate.out_features,)
        both: dict[str, Blocks] = {}
        for name in ("gate", "value"):
            both |= {f"{name}.weight": (hidden, ()), f"{name}.bias": (hidden,)}
        return both
