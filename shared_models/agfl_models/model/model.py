"""AutoGenModel: layers built from a configuration, between an embedding and a head if the model reads tokens.

B batch, T time, D width of the embedding and of the residual stream, E width of the output, S length of the source,
V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.layers.layer import Memory, State
from agfl_models.model.config import ModelConfig, ResolvedModelConfig
from agfl_models.model.heads import Head
from agfl_models.model.sequence_model import SequenceModel, own_generator
from agfl_models.model.stack import Encoder, Stack
from agfl_models.validation import validate

# With a tied head every token's logit has this standard deviation at first, and the token just read about this
# logit at most: the untrained model is close to uniform at any width.
LOGIT_STD = 0.5
OWN_LOGIT = 4.0
# Tried on the shipped corpus with SGD: 1.0 learns worse at rates 0.3 and 1, the matrix as it is worse at 1.
INPUT_STD = 0.25


class AutoGenModel(Stack, SequenceModel):
    """A modular model: `layers[i]` is the layer that `config.layers[i]` describes, nothing more.

    Norms, residual sums and bridges are in `connections[i]`. There is no dropout, so a forward pass draws no
    random numbers. The initial weights keep the scale of what flows through; those that write to the residual
    stream are scaled by 1 / sqrt(number of layers), as in GPT-2 (Radford et al. 2019, section 2.3).

    Args:
        config: a `ModelConfig`, or a mapping in either of its forms.
        seed: draw the initial weights from a generator of their own; the global one is left alone. Without it
            they come from the global generator.

    Raises:
        ConfigError: the mapping breaks a rule of `ModelConfig`, or the layers hold a choice.

    Warns:
        UserWarning: layers of unequal width are joined by a linear bridge.
    """

    def __init__(self, config: ModelConfig | Mapping[str, Any], seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            config = validate(ModelConfig, dict(config), "model")
        if config.choices:
            raise ConfigError(
                "AGFL-CONFIG-114", f"layers: a model has no choices left, got {', '.join(config.choices)}"
            )
        self.config = config.resolve()
        for bridge in self.config.bridges():
            warnings.warn(bridge, stacklevel=2)
        with own_generator(seed):
            self._build(self.config)
            self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        mask_BT: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Return what the head makes of token ids_BT (logits_BTV, logits_BT2 or logits_BC), without one y_BTE.

        Args:
            x: ids_BT (integers), or vectors x_BTD if the model has no vocabulary; for an encoder-decoder the target.
            mask_BT: True at real positions, in any pattern; see `Layer.forward`.
            source: ids_BS (or vectors) that an encoder-decoder reads.
            source_mask: True at the real positions of the source.
            types_BT: kinds of tokens (integers from 0), of which the model tells `config.type_vocab_size` apart.

        Raises:
            ConfigError: an encoder-decoder gets no source, or another model one.
        """
        self._check_source(source is not None)
        memory = None if source is None else self.encode(source, source_mask)
        return self._read_out(self.run_stack(self._embed(x, types_BT), mask_BT, memory), mask_BT)

    def encode(self, source: Tensor, source_mask_BS: Tensor | None = None) -> Memory:
        """Return what the encoder of an encoder-decoder reads in ids_BS (or vectors); raises ConfigError for others."""
        self._check_source(True)
        assert self.encoder is not None
        memory: Memory = self.encoder(self._embed(source), source_mask_BS)
        return memory

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> tuple[State, ...]:
        """Return the state before the first position: one `State` for each layer.

        Args:
            batch_size: rows that decode side by side.
            memory: for an encoder-decoder, as `encode` returns it, a row for each of the batch.

        Raises:
            ConfigError: an encoder does not decode, and an encoder-decoder not without a memory.
        """
        if self.config.family == "encoder":
            raise ConfigError(
                "AGFL-CONFIG-115", "family: must be decoder or encoder_decoder to decode step by step, got encoder"
            )
        self._check_source(memory is not None)
        return self.initial_stack_state(batch_size, memory)

    def step(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        """Return logits_BV for ids_B (or y_BE for x_BD) at the next position, and the state after it.

        Raises:
            ConfigError: a layer sees later positions.
        """
        y, after = self.step_stack(self._embed(x), state)
        return self._read_out(y, None), after

    def read(self, x: Tensor, state: tuple[State, ...]) -> tuple[State, ...]:
        """Return the state after ids_BT (or vectors x_BTD); raises as `step`."""
        return self.read_stack(self._embed(x), state)

    def reset_parameters(self) -> None:
        """Draw new initial weights from the global generator."""
        if self.encoder is not None:
            self.encoder.reset_stack()
        self.reset_stack()
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=self._embedding_std())
        if self.type_embedding is not None:
            nn.init.normal_(self.type_embedding.weight, std=INPUT_STD)

    def _build(self, config: ResolvedModelConfig) -> None:
        self.embedding: nn.Embedding | None = None
        self.type_embedding: nn.Embedding | None = None
        self.encoder: Encoder | None = None
        self.head: Head | None = None
        if config.vocab_size is not None:
            self.embedding = nn.Embedding(config.vocab_size, config.dim)
        if config.type_vocab_size > 1:
            self.type_embedding = nn.Embedding(config.type_vocab_size, config.dim)
        if config.encoder_stack is not None:
            self.encoder = Encoder(config.encoder_stack)
        self.build_stack(config.stack)
        if config.vocab_size is not None and config.head is not None:
            self.head = config.head.build(config.width_out, config.vocab_size, config.norm)

    def _check_source(self, is_given: bool) -> None:
        if self.encoder is None and is_given:
            raise ConfigError(
                "AGFL-CONFIG-116", f"family: must be encoder_decoder to read a source, got {self.config.family}"
            )
        if self.encoder is not None and not is_given:
            raise ConfigError("AGFL-CONFIG-117", "source: required with family encoder_decoder, got none")

    def _embed(self, x: Tensor, types_BT: Tensor | None = None) -> Tensor:
        if self.embedding is None:
            return x
        # The matrix is small for the head and its rows larger as input, as in Vaswani et al. 2017, section 3.4.
        embedded: Tensor = self.embedding(x) * (INPUT_STD / self._embedding_std())
        if self.type_embedding is None:
            return embedded
        types_BT = torch.zeros_like(x) if types_BT is None else types_BT.clamp(max=self.config.type_vocab_size - 1)
        types_BTD: Tensor = self.type_embedding(types_BT)
        return embedded + types_BTD

    def _embedding_std(self) -> float:
        return min(LOGIT_STD / math.sqrt(self.config.dim), OWN_LOGIT / self.config.dim)

    def _read_out(self, x: Tensor, mask_BT: Tensor | None) -> Tensor:
        if self.head is None or self.embedding is None:
            return x
        logits: Tensor = self.head(x, mask_BT, self.embedding.weight)
        return logits
