"""What every layer type provides: a configuration that knows its sizes, and a module that can decode.

B batch, T time, D width of the input, E width of the output, S length of the memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.registry import Registry
from agfl_models.validation import Config, validate

State = tuple[Tensor, ...]
"""What a layer remembers while decoding; batch is the first dimension of each tensor, to reorder beams by."""
Blocks = tuple[tuple[int, ...], ...]
"""For each dimension of a parameter the lengths of the blocks in it that are inner units; () where none are."""


class Memory(NamedTuple):
    """What an encoder read: its output, and True at the real positions (None if all are)."""

    states_BSD: Tensor
    mask_BS: Tensor | None = None


class LayerConfigBase(Config, ABC):
    """Base of the layer configurations; subclasses add `type: Literal[...]` and their sizes.

    Sizes may be None until `resolved` fills them; widths and counts need a resolved configuration.
    """

    type: str

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """Whether no position sees a later one, as none may under a language-model head."""

    @property
    @abstractmethod
    def is_mixer(self) -> bool:
        """Whether it moves information between positions of its stack; a search puts others in the place of such."""

    @property
    def kind(self) -> str:
        """What a search knows it by."""
        return self.type

    @property
    def needs_memory(self) -> bool:
        """Whether it looks at an encoder's output."""
        return False

    @property
    @abstractmethod
    def stated_width(self) -> int | None:
        """Width of the input as the person wrote it, None if left to the model."""

    @property
    @abstractmethod
    def width_in(self) -> int:
        """Width of the input."""

    @property
    @abstractmethod
    def width_out(self) -> int:
        """Width of the output."""

    @abstractmethod
    def resolved(self, width: int, residual: bool, name: str) -> Self:
        """Return a copy with every size filled in.

        Args:
            width: width of what arrives from before this layer.
            residual: the layer's output is added to its input, so by default it is `width` wide again.
            name: path of this layer for error messages, such as "layers.2".

        Raises:
            ConfigError: the sizes break a rule of the layer.
        """

    def in_stack(self, causal: bool, memory_dim: int | None) -> Self:
        """Return a copy with the defaults filled in that follow from the stack it stands in.

        Args:
            causal: a decoder, where no position may see a later one; else an encoder.
            memory_dim: width of the encoder's output that the stack looks at; None without an encoder.
        """
        return self

    @abstractmethod
    def narrowed(self, width: float, name: str) -> Self:
        """Return a copy with the first `kept_units(width, units)` of the inner units; it needs a resolved layer.

        Args:
            width: in (0, 1].
            name: path of this layer for error messages, such as "layers.2".

        Raises:
            ConfigError: the first units are no layer of this type.
        """

    @abstractmethod
    def num_parameters(self) -> int:
        """Number of trainable parameters of the layer."""

    @abstractmethod
    def flops_per_token(self, context_length: int) -> int:
        """Floating-point operations of the matrix products in one forward pass, per token."""

    @abstractmethod
    def build(self) -> Layer:
        """Return the module."""

    def standalone(self) -> Self:
        """Return a copy with every size filled in from the width stated here, as in a decoder.

        Raises:
            ConfigError: the width is not stated, or a size breaks a rule.
        """
        if self.stated_width is None:
            raise ConfigError("AGFL-CONFIG-092", f"{self.type}: a layer on its own must state its width, got none")
        placed = self.in_stack(causal=True, memory_dim=None)
        return placed.resolved(self.stated_width, residual=False, name=self.type)

    def filled(self, name: str, **sizes: int | None) -> Self:
        """Return a copy with `sizes` set, checked again; raises ConfigError."""
        return validate(type(self), {**self.model_dump(), **sizes}, name)


LAYERS = Registry(LayerConfigBase)  # type: ignore[type-abstract]  # it is never called


class Layer(nn.Module, ABC):
    """A map from sequence to sequence that can also run one position at a time."""

    input_dim: int
    output_dim: int

    @abstractmethod
    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """Return y_BTE for whole sequences.

        Args:
            x_BTD: inputs.
            mask_BT: True at real positions, in any pattern. Outputs at real positions do not depend on padding;
                those at padding are finite but mean nothing.
            memory: what the encoder read; only cross-attention looks at it.
        """

    @abstractmethod
    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        """Return the state before the first position; what cross-attention needs of `memory` is in it."""

    @abstractmethod
    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Return y_BE and the new state for one more position; the given state is left as it was."""

    def steps(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        """Return y_BTE and the new state for T more positions, as T times `step`; a layer may know a faster way."""
        outputs = []
        for x_BD in x_BTD.unbind(1):
            y_BE, state = self.step(x_BD, state)
            outputs.append(y_BE)
        return torch.stack(outputs, dim=1), state

    @abstractmethod
    def reset_parameters(self, branch_scale: float) -> None:
        """Draw the initial weights from the global generator.

        Args:
            branch_scale: factor on the weights that write the output (see `AutoGenModel`).
        """

    @abstractmethod
    def inner_blocks(self) -> dict[str, Blocks]:
        """Return for each parameter with inner units where they are: a narrower layer has a prefix of each block."""


def kept_units(width: float, units: int) -> int:
    """Return how many of a layer's inner units a model of `width` has: always the first, and at least one."""
    return max(1, round(width * units))


def at_least_float32(x: Tensor) -> Tensor:
    """Return x itself, or as float32 if its type is less precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def init_linear(linear: nn.Linear, scale: float = 1.0) -> None:
    """Draw weights from N(0, scale² / fan_in), so that outputs are `scale` times as large as inputs; bias 0.

    LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """
    nn.init.normal_(linear.weight, std=scale * linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
