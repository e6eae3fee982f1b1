"""AutoGenModel: layers built from a configuration, between an embedding and a head if the model reads tokens.

B batch, T time, D width of the embedding and of the residual stream, E width of the output, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agfl_models.config import ModelConfig, ResolvedModelConfig
from agfl_models.heads import LanguageModelHead
from agfl_models.layers import build
from agfl_models.layers.connection import SublayerConnection
from agfl_models.layers.layer import Layer, State
from agfl_models.validation import validate

# With a tied head every token's logit has this standard deviation at first, and the token just read about this
# logit at most: the untrained model is close to uniform at any width.
LOGIT_STD = 0.5
OWN_LOGIT = 4.0
# Tried on the shipped corpus with SGD: 1.0 learns worse at rates 0.3 and 1, the matrix as it is worse at 1.
INPUT_STD = 0.25


class AutoGenModel(nn.Module):
    """A modular model: `layers[i]` is the layer that `config.layers[i]` describes, nothing more.

    Norms, residual sums and bridges are in `connections[i]`. There is no dropout, so a forward pass draws no
    random numbers. The initial weights keep the scale of what flows through; those that write to the residual
    stream are scaled by 1 / sqrt(number of layers), as in GPT-2 (Radford et al. 2019, section 2.3).

    Args:
        config: a `ModelConfig`, or a mapping in either of its forms.
        seed: draw the initial weights from a generator of their own; the global one is left alone. Without it
            they come from the global generator.

    Raises:
        ConfigError: the mapping breaks a rule of `ModelConfig`.

    Warns:
        UserWarning: layers of unequal width are joined by a linear bridge.
    """

    def __init__(self, config: ModelConfig | Mapping[str, Any], seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            config = validate(ModelConfig, dict(config), "model")
        self.config = config.resolve()
        for bridge in self.config.bridges():
            warnings.warn(bridge, stacklevel=2)
        with _own_generator(seed):
            self._build(self.config)
            self.reset_parameters()

    def forward(self, x: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return logits_BTV for token ids_BT, or y_BTE for vectors x_BTD if the model has no vocabulary.

        Args:
            x: ids_BT (integers) or x_BTD.
            mask_BT: True at real positions, in any pattern; see `Layer.forward`.
        """
        x = self._embed(x)
        for layer, connection in self._sublayers():
            x = connection(x, layer, mask_BT)
        return self._read_out(x)

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        """Return the state before the first position: one `State` for each layer."""
        return tuple(layer.initial_state(batch_size) for layer, _ in self._sublayers())

    def step(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        """Return logits_BV for ids_B (or y_BE for x_BD) at the next position, and the state after it.

        Raises:
            ConfigError: an attention layer is not causal.
        """
        x = self._embed(x)
        after = []
        for (layer, connection), before in zip(self._sublayers(), state, strict=True):
            x, layer_state = connection.step(x, layer, before)
            after.append(layer_state)
        return self._read_out(x), tuple(after)

    def reset_parameters(self) -> None:
        """Draw new initial weights from the global generator."""
        is_residual = self.config.residual != "none"
        branch_scale = len(self.layers) ** -0.5 if is_residual else 1.0
        for layer, connection in self._sublayers():
            layer.reset_parameters(branch_scale if connection.bridge_out is None else 1.0)
            connection.reset_parameters(branch_scale)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=self._embedding_std())

    def _build(self, config: ResolvedModelConfig) -> None:
        self.embedding: nn.Embedding | None = None
        self.head: LanguageModelHead | None = None
        if config.vocab_size is not None:
            self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(build(layer) for layer in config.layers)
        self.connections = nn.ModuleList(
            SublayerConnection(*place.widths, config.residual, config.norm) for place in config.places()
        )
        if config.vocab_size is not None and config.head is not None:
            self.head = LanguageModelHead(config.head, config.width_out, config.vocab_size, config.norm)

    def _sublayers(self) -> Iterator[tuple[Layer, SublayerConnection]]:
        for layer, connection in zip(self.layers, self.connections, strict=True):
            assert isinstance(layer, Layer)
            assert isinstance(connection, SublayerConnection)
            yield layer, connection

    def _embed(self, x: Tensor) -> Tensor:
        if self.embedding is None:
            return x
        # The matrix is small for the head and its rows larger as input, as in Vaswani et al. 2017, section 3.4.
        embedded: Tensor = self.embedding(x) * (INPUT_STD / self._embedding_std())
        return embedded

    def _embedding_std(self) -> float:
        return min(LOGIT_STD / math.sqrt(self.config.dim), OWN_LOGIT / self.config.dim)

    def _read_out(self, x: Tensor) -> Tensor:
        if self.head is None or self.embedding is None:
            return x
        logits: Tensor = self.head(x, self.embedding.weight)
        return logits


@contextlib.contextmanager
def _own_generator(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
