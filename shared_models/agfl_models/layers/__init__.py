"""The layer types. A new type is one file here and one more name in `LayerConfig`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agfl_models.layers.attention import AttentionConfig
from agfl_models.layers.feed_forward import FFConfig
from agfl_models.layers.layer import Layer
from agfl_models.layers.recurrent import RNNConfig

LayerConfig = Annotated[FFConfig | RNNConfig | AttentionConfig, Field(discriminator="type")]


def build(config: LayerConfig) -> Layer:
    """Return the module of a resolved layer configuration."""
    return config.build()
