"""The layer types: each is one file here, which registers its configuration, and one line below that imports it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from agfl_models.layers import any_attention as any_attention
from agfl_models.layers import causal_conv as causal_conv
from agfl_models.layers import feed_forward as feed_forward
from agfl_models.layers import recurrent as recurrent
from agfl_models.layers.layer import LAYERS, Layer, LayerConfigBase

LayerConfig: TypeAlias = Annotated[LayerConfigBase, LAYERS]


def build(config: LayerConfig) -> Layer:
    """Return the module of a resolved layer configuration."""
    return config.build()
