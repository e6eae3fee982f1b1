"""Layers in a row, each in its connection: the decoder is such a stack, and the encoder another.

B batch, T time, D width of the residual stream, E width of the output, S length of the source.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from agfl_models.layers import build
from agfl_models.layers.connection import SublayerConnection, build_norm
from agfl_models.layers.layer import Layer, Memory, State
from agfl_models.model.stack_config import StackConfig


class Stack(nn.Module):
    """`layers[i]` is the layer that the configuration describes; norms, sums and bridges are in `connections[i]`."""

    layers: nn.ModuleList
    connections: nn.ModuleList

    def build_stack(self, config: StackConfig) -> None:
        """Make the layers and their connections."""
        self.layers = nn.ModuleList(build(layer) for layer in config.layers)
        self.connections = nn.ModuleList(
            SublayerConnection(*place.widths, config.residual, config.norm) for place in config.places()
        )
        self._branch_scale = len(config.layers) ** -0.5 if config.residual != "none" else 1.0

    def run_stack(self, x_BTD: Tensor, mask_BT: Tensor | None, memory: Memory | None = None) -> Tensor:
        """Return y_BTE for whole sequences; see `Layer.forward`."""
        for layer, connection in self._sublayers():
            x_BTD = connection(x_BTD, layer, mask_BT, memory)
        return x_BTD

    def initial_stack_state(self, batch_size: int, memory: Memory | None = None) -> tuple[State, ...]:
        """Return one `State` for each layer."""
        return tuple(layer.initial_state(batch_size, memory) for layer, _ in self._sublayers())

    def step_stack(self, x_BD: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        """Return y_BE at the next position, and the state after it."""
        after = []
        for (layer, connection), before in zip(self._sublayers(), state, strict=True):
            x_BD, layer_state = connection.step(x_BD, layer, before)
            after.append(layer_state)
        return x_BD, tuple(after)

    def read_stack(self, x_BTD: Tensor, state: tuple[State, ...]) -> tuple[State, ...]:
        """Return the state after T more positions."""
        after = []
        for (layer, connection), before in zip(self._sublayers(), state, strict=True):
            x_BTD, layer_state = connection.steps(x_BTD, layer, before)
            after.append(layer_state)
        return tuple(after)

    def reset_stack(self) -> None:
        """Draw new initial weights from the global generator."""
        for layer, connection in self._sublayers():
            layer.reset_parameters(self._branch_scale if connection.bridge_out is None else 1.0)
            connection.reset_parameters(self._branch_scale)

    def _sublayers(self) -> Iterator[tuple[Layer, SublayerConnection]]:
        for layer, connection in zip(self.layers, self.connections, strict=True):
            assert isinstance(layer, Layer)
            assert isinstance(connection, SublayerConnection)
            yield layer, connection


class Encoder(Stack):
    """The stack that reads the source of an encoder-decoder, with a final norm."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.build_stack(config)
        self.norm = build_norm(config.norm, config.width_out)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Memory:
        """Return the memory that cross-attention looks at."""
        return Memory(self.norm(self.run_stack(x_BSD, mask_BS)), mask_BS)
