"""The layer types. A new type is one file here and one more name in `LayerConfig`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from agfl_models.layers.attention import AttentionConfig
from agfl_models.layers.cross_attention import CrossAttentionConfig
from agfl_models.layers.feed_forward import FFConfig
from agfl_models.layers.layer import Layer
from agfl_models.layers.recurrent import RNNConfig


def _attention_tag(item: Any) -> str:
    # Both are `type: attention` to a person; no key can be mistaken for a tag with a blank.
    cross = item.get("cross") if isinstance(item, dict) else getattr(item, "cross", None)
    return "cross attention" if cross else "self attention"


AnyAttentionConfig = Annotated[
    Annotated[AttentionConfig, Tag("self attention")] | Annotated[CrossAttentionConfig, Tag("cross attention")],
    Discriminator(_attention_tag),
]
LayerConfig = Annotated[FFConfig | RNNConfig | AnyAttentionConfig, Field(discriminator="type")]


def build(config: LayerConfig) -> Layer:
    """Return the module of a resolved layer configuration."""
    return config.build()
