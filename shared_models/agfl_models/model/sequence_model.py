"""What text tasks ask of a model beyond `forward`: to decode one token after the other. Training asks for neither.

B batch, T time, D width of the encoder's output, S length of the source, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.layers.layer import Memory, State

# A thread that reads PyTorch's generator may collect garbage while it holds its mutex, and wait there for another one
# that holds Python's lock and wants that mutex: both wait for ever. So no two read it at a time. Who takes another
# lock as well takes this one first.
_GENERATOR = threading.RLock()


class SequenceModel(nn.Module, ABC):
    """A model of token sequences, which generation decodes from."""

    @property
    def max_length(self) -> float:
        """For how many positions the model was made; infinity where it has no last one."""
        return math.inf

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        mask_BT: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Return what the head makes of token ids_BT: logits_BTV, logits_BT2 or logits_BC.

        Args:
            x: ids_BT; for an encoder-decoder the target.
            mask_BT: True at real positions; see `Layer.forward`.
            source: ids_BS that an encoder-decoder reads.
            source_mask: True at the real positions of the source.
            types_BT: what kind of token stands at each position, for an encoder; see `tasks.spans`. A kind that the
                model does not tell apart counts as its last one.
        """

    @abstractmethod
    def encode(self, source: Tensor, source_mask_BS: Tensor | None = None) -> Memory:
        """Return what the encoder of an encoder-decoder reads in ids_BS."""

    @abstractmethod
    def initial_state(self, batch_size: int, memory: Memory | None = None) -> tuple[State, ...]:
        """Return the state before the first position; batch is the first dimension of each of its tensors.

        Raises:
            ConfigError: the model does not decode.
        """

    @abstractmethod
    def step(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        """Return logits_BV for ids_B at the next position, and the state after it; the given one is left as it was."""

    def read(self, x: Tensor, state: tuple[State, ...]) -> tuple[State, ...]:
        """Return the state after ids_BT, as `step` on one after the other; a model may know a faster way."""
        for ids_B in x.unbind(1):
            _, state = self.step(ids_B, state)
        return state


def decoding(model: nn.Module) -> SequenceModel:
    """Return the model as one that decodes; raises ConfigError if it does not."""
    if not isinstance(model, SequenceModel):
        raise ConfigError(
            "AGFL-CONFIG-119", f"model: must be a SequenceModel to write text, got {type(model).__name__}"
        )
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return by name the parameters that are trained, and that travel; a tied one once, and no frozen one."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextlib.contextmanager
def own_generator(seed: int | None) -> Iterator[None]:
    """Let PyTorch draw from a generator of its own, one thread at a time, and leave the global one alone.

    None changes nothing.
    """
    if seed is None:
        yield
        return
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
