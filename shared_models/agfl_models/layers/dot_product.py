"""What self-attention and cross-attention share: heads, their widths, and the weighted sum.

B batch, T positions that look, S positions looked at, N query heads, K key-value heads, A width of one head.
"""

from __future__ import annotations

from abc import ABC
from typing import Self

import torch.nn.functional as F
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from agfl_models.bounded import Size
from agfl_models.errors import BrokenRule
from agfl_models.layers.layer import LayerConfigBase, kept_units

DEFAULT_HEAD_DIM = 32


class DotProductConfig(LayerConfigBase, ABC):
    """Widths and heads of an attention layer.

    `head_dim` is the width of one head; without it the heads divide `embed_dim`. `num_heads` defaults to the most
    heads that `embed_dim` holds, at least 32 wide without `head_dim`; `num_kv_heads` to `num_heads`.
    """

    # Order matters: a field is checked against those above it.
    type: str = "attention"
    embed_dim: Size | None = None
    rope: bool = True
    head_dim: Size | None = None
    num_heads: Size | None = None
    num_kv_heads: Size | None = None

    @field_validator("head_dim")
    @classmethod
    def _rope_turns_pairs(cls, head_dim: int | None, info: ValidationInfo) -> int | None:
        if head_dim is not None and info.data.get("rope") and head_dim % 2:
            raise BrokenRule("AGFL-CONFIG-087", "must be even with rope")
        return head_dim

    @field_validator("num_heads")
    @classmethod
    def _heads_divide_width(cls, num_heads: int | None, info: ValidationInfo) -> int | None:
        embed_dim = info.data.get("embed_dim")
        if num_heads is None or embed_dim is None or info.data.get("head_dim") is not None:
            return num_heads
        if embed_dim % num_heads:
            raise BrokenRule("AGFL-CONFIG-088", f"must divide embed_dim ({embed_dim})")
        if info.data.get("rope") and embed_dim // num_heads % 2:
            raise BrokenRule("AGFL-CONFIG-089", f"embed_dim ({embed_dim}) / num_heads must be even with rope")
        return num_heads

    @field_validator("num_kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, num_kv_heads: int | None, info: ValidationInfo) -> int | None:
        num_heads = info.data.get("num_heads")
        if num_kv_heads is not None and num_heads is not None and num_heads % num_kv_heads:
            raise BrokenRule("AGFL-CONFIG-090", f"must divide num_heads ({num_heads})")
        return num_kv_heads

    @property
    def stated_width(self) -> int | None:
        return self.embed_dim

    @property
    def width_in(self) -> int:
        assert self.embed_dim is not None
        return self.embed_dim

    @property
    def width_out(self) -> int:
        return self.width_in

    @property
    def width_inner(self) -> int:
        """Width of all queries of one position, and of what they find."""
        assert self.num_heads is not None
        assert self.head_dim is not None
        return self.num_heads * self.head_dim

    @property
    def width_kv(self) -> int:
        """Width of all keys, or all values, of one position."""
        assert self.num_kv_heads is not None
        assert self.head_dim is not None
        return self.num_kv_heads * self.head_dim

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        embed_dim = self.embed_dim or width
        num_heads = self.num_heads or _default_heads(embed_dim, self.head_dim)
        kv_heads = self.num_kv_heads or num_heads
        # Whether the heads divide the width is checked before a quotient hides that they do not.
        checked = self.filled(name, embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=kv_heads)
        return checked.model_copy(update={"head_dim": self.head_dim or embed_dim // num_heads})

    def narrowed(self, width: float, name: str) -> Self:
        """Keep the first key-value heads, each with its group of query heads."""
        assert self.num_heads is not None
        assert self.num_kv_heads is not None
        kv_heads = kept_units(width, self.num_kv_heads)
        num_heads = self.num_heads // self.num_kv_heads * kv_heads
        return self.model_copy(update={"num_heads": num_heads, "num_kv_heads": kv_heads})


def _default_heads(embed_dim: int, head_dim: int | None) -> int:
    if head_dim is not None:
        return max(1, embed_dim // head_dim)
    most = max(1, embed_dim // DEFAULT_HEAD_DIM)
    return max((n for n in range(1, most + 1) if embed_dim % (2 * n) == 0), default=1)


def attend(
    q_BTNA: Tensor,
    k_BSKA: Tensor,
    v_BSKA: Tensor,
    allowed_B1TS: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Return (B, T, N * A): the mean of the values, weighted by how well their keys fit the query.

    Args:
        allowed_B1TS: True where a query may look at a key; no row may be empty, since some kernels make it 0/0.
        is_causal: query t may look at the keys up to t; not together with `allowed_B1TS`.
    """
    y_BNTA = F.scaled_dot_product_attention(
        q_BTNA.transpose(1, 2),
        k_BSKA.transpose(1, 2),
        v_BSKA.transpose(1, 2),
        attn_mask=allowed_B1TS,
        is_causal=is_causal,
        enable_gqa=k_BSKA.shape[2] != q_BTNA.shape[2],
    )
    return y_BNTA.transpose(1, 2).flatten(2)
