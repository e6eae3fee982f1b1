"""Recurrent layer: a cell over time, or one each way, and a projection of what it remembers.

B batch, T time, D width of the input, H hidden width, E width of the output.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from agfl_models.bounded import Size
from agfl_models.errors import ConfigError
from agfl_models.layers import gated_delta
from agfl_models.layers.cells import MinGRUCell, TorchCell
from agfl_models.layers.gated_delta import GatedDeltaCell
from agfl_models.layers.layer import LAYERS, Blocks, Layer, LayerConfigBase, Memory, State, init_linear, kept_units


@LAYERS.register
class RNNConfig(LayerConfigBase):
    """Sizes of a recurrent layer.

    `hidden_dim` defaults to input_dim. The output is the hidden state, `hidden_dim` wide, unless `output_dim`
    is given: then a projection of it. In a residual model `output_dim` defaults to the width of the stream.
    `bidirectional`, the default in an encoder, is `hidden_dim` in each direction and both hidden states side by side.
    """

    type: Literal["rnn"] = "rnn"
    input_dim: Size | None = None
    hidden_dim: Size | None = None
    output_dim: Size | None = None
    cell: Literal["gru", "lstm", "mingru", "gated_delta"] = "gru"
    bidirectional: bool | None = None

    @property
    def stated_width(self) -> int | None:
        return self.input_dim

    @property
    def width_in(self) -> int:
        assert self.input_dim is not None
        return self.input_dim

    @property
    def width_out(self) -> int:
        return self.output_dim or self.num_directions * self.width_hidden

    @property
    def width_hidden(self) -> int:
        """Width of the hidden state, in one direction."""
        assert self.hidden_dim is not None
        return self.hidden_dim

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def is_causal(self) -> bool:
        """Unless it runs both ways."""
        return not self.bidirectional

    @property
    def is_mixer(self) -> bool:
        """A state goes from position to position."""
        return True

    @property
    def kind(self) -> str:
        """Its cell."""
        return self.cell

    def in_stack(self, causal: bool, memory_dim: int | None) -> Self:
        return self if self.bidirectional is not None else self.model_copy(update={"bidirectional": not causal})

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        input_dim = self.input_dim or width
        return self.filled(
            name,
            input_dim=input_dim,
            hidden_dim=self.hidden_dim or input_dim,
            output_dim=self.output_dim or (width if residual else None),
        )

    def narrowed(self, width: float, name: str) -> Self:
        """Keep the first channels of the state, or heads; without a projection they are the output, and all stay."""
        if self.output_dim is None:
            return self
        if self.cell == "gated_delta":
            hidden = gated_delta.narrowed_hidden(width, self.width_hidden, name)
        else:
            hidden = kept_units(width, self.width_hidden)
        return self.model_copy(update={"hidden_dim": hidden})

    def num_parameters(self) -> int:
        hidden = self.width_hidden
        if self.cell == "gated_delta":
            others = gated_delta.count_other_parameters(hidden)
        else:
            others = {"gru": 6, "lstm": 8, "mingru": 2}[self.cell] * hidden
        return self._num_weights() + self.num_directions * others

    def flops_per_token(self, context_length: int) -> int:
        state = gated_delta.state_flops(self.width_hidden) if self.cell == "gated_delta" else 0
        return 2 * self._num_weights() + self.num_directions * state

    def build(self) -> RNNLayer:
        return RNNLayer(self)

    def _num_weights(self) -> int:
        return self.num_directions * (self._cell_weights() + self.width_hidden * (self.output_dim or 0))

    def _cell_weights(self) -> int:
        hidden = self.width_hidden
        if self.cell == "gated_delta":
            return gated_delta.count_weights(self.width_in, hidden)
        if self.cell == "mingru":
            return 2 * hidden * self.width_in
        return {"gru": 3, "lstm": 4}[self.cell] * hidden * (self.width_in + hidden)


class RNNLayer(Layer):
    """A recurrent cell over time and, if `output_dim` is given, a projection of its hidden state.

    Padding leaves the state as it is. The state is (h_BH,), for LSTM (h_BH, c_BH), for the gated delta rule
    (s_BNAA,). A second cell runs over time backward if `bidirectional` (Schuster and Paliwal 1997, "Bidirectional
    recurrent neural networks").

    Args:
        config: sizes; those left out get their defaults.
    """

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        config = config.standalone()
        self.input_dim, self.output_dim = config.width_in, config.width_out
        self.cell = _build_cell(config)
        self.backward_cell = _build_cell(config) if config.bidirectional else None
        self.output: nn.Linear | None = None
        if config.output_dim is not None:
            self.output = nn.Linear(config.num_directions * config.width_hidden, config.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        h_BTH: Tensor = self.cell(x_BTD, mask_BT)
        if self.backward_cell is not None:
            turned_BTH = self.backward_cell(x_BTD.flip(1), None if mask_BT is None else mask_BT.flip(1))
            h_BTH = torch.cat((h_BTH, turned_BTH.flip(1)), dim=-1)
        return self._project(h_BTH)

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        return self.cell.initial_state(batch_size)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Layer.step`. Raises ConfigError if the layer is bidirectional."""
        if self.backward_cell is not None:
            raise ConfigError("AGFL-CONFIG-093", "bidirectional: must be false to decode step by step, got true")
        h_BH, state = self.cell.step(x_BD, state)
        return self._project(h_BH), state

    def reset_parameters(self, branch_scale: float) -> None:
        self.cell.reset_parameters()
        if self.backward_cell is not None:
            self.backward_cell.reset_parameters()
        if self.output is not None:
            init_linear(self.output, branch_scale)

    def inner_blocks(self) -> dict[str, Blocks]:
        blocks: dict[str, Blocks] = {}
        for name, cell in (("cell", self.cell), ("backward_cell", self.backward_cell)):
            if cell is not None:
                blocks |= {f"{name}.{parameter}": where for parameter, where in cell.inner_blocks().items()}
        if self.output is not None:
            directions = 1 if self.backward_cell is None else 2
            blocks["output.weight"] = ((), (self.output.in_features // directions,) * directions)
        return blocks

    def _project(self, h: Tensor) -> Tensor:
        if self.output is None:
            return h
        y: Tensor = self.output(h)
        return y


def _build_cell(config: RNNConfig) -> TorchCell | MinGRUCell | GatedDeltaCell:
    if config.cell == "gated_delta":
        return GatedDeltaCell(config.width_in, config.width_hidden)
    if config.cell == "mingru":
        return MinGRUCell(config.width_in, config.width_hidden)
    return TorchCell(config.cell, config.width_in, config.width_hidden)
