"""Self-attention and cross-attention, which are one type of layer to a person."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from agfl_models.layers.attention import AttentionConfig
from agfl_models.layers.cross_attention import CrossAttentionConfig
from agfl_models.layers.layer import LAYERS


def _tag(item: Any) -> str:
    # Both are `type: attention`; no key can be mistaken for a tag with a blank.
    cross = item.get("cross") if isinstance(item, dict) else getattr(item, "cross", None)
    return "cross attention" if cross else "self attention"


AnyAttentionConfig = Annotated[
    Annotated[AttentionConfig, Tag("self attention")] | Annotated[CrossAttentionConfig, Tag("cross attention")],
    Discriminator(_tag),
]
LAYERS.register_union("attention", AnyAttentionConfig)
