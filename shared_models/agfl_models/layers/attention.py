"""Self-attention with grouped queries and rotary positions, on torch's scaled_dot_product_attention.

B batch, T time, D model width, N query heads, K key-value heads, A width of one head, S positions looked at.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.layers.layer import Layer, LayerConfigBase, State, at_least_float32, init_linear

ROPE_BASE = 10_000.0
DEFAULT_HEAD_DIM = 32


class AttentionConfig(LayerConfigBase):
    """Sizes of an attention layer.

    `num_heads` defaults to the most heads that are at least 32 wide, `num_kv_heads` to `num_heads`.
    """

    # Order matters: a field is checked against those above it.
    type: Literal["attention"] = "attention"
    embed_dim: PositiveInt | None = None
    rope: bool = True
    num_heads: PositiveInt | None = None
    num_kv_heads: PositiveInt | None = None
    causal: bool = True

    @field_validator("num_heads")
    @classmethod
    def _heads_divide_width(cls, num_heads: int | None, info: ValidationInfo) -> int | None:
        embed_dim = info.data.get("embed_dim")
        if num_heads is None or embed_dim is None:
            return num_heads
        if embed_dim % num_heads:
            raise ValueError(f"must divide embed_dim ({embed_dim})")
        if info.data.get("rope") and embed_dim // num_heads % 2:
            raise ValueError(f"embed_dim ({embed_dim}) / num_heads must be even with rope")
        return num_heads

    @field_validator("num_kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, num_kv_heads: int | None, info: ValidationInfo) -> int | None:
        num_heads = info.data.get("num_heads")
        if num_kv_heads is not None and num_heads is not None and num_heads % num_kv_heads:
            raise ValueError(f"must divide num_heads ({num_heads})")
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

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        embed_dim = self.embed_dim or width
        num_heads = self.num_heads or _default_heads(embed_dim)
        return self.filled(name, embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=self.num_kv_heads or num_heads)

    def num_parameters(self) -> int:
        assert self.num_heads is not None
        assert self.num_kv_heads is not None
        kv_width = self.width_in // self.num_heads * self.num_kv_heads
        return self.width_in * (2 * self.width_in + 2 * kv_width)

    def flops_per_token(self, context_length: int) -> int:
        """2 for each weight, and 4 * embed_dim for each position: a score and a term of the weighted sum."""
        return 2 * self.num_parameters() + 4 * context_length * self.width_in

    def build(self) -> AttentionLayer:
        return AttentionLayer(self)


def _default_heads(embed_dim: int) -> int:
    most = max(1, embed_dim // DEFAULT_HEAD_DIM)
    return max((n for n in range(1, most + 1) if embed_dim % (2 * n) == 0), default=1)


class AttentionLayer(Layer):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) with rotary positions.

    Each `num_heads / num_kv_heads` query heads share one key-value head; no biases. The state is the keys and
    values of all positions so far: (k_BSKA, v_BSKA), keys already rotated.

    Args:
        config: sizes; those left out get their defaults.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        config = config.standalone()
        assert config.num_heads is not None
        assert config.num_kv_heads is not None
        self.input_dim = self.output_dim = config.width_in
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.width_in // config.num_heads
        self.causal, self.rope = config.causal, config.rope
        self.qkv = nn.Linear(self.input_dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=False)
        self.output = nn.Linear(self.input_dim, self.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        positions = _positions(x_BTD, mask_BT)
        q_BTNA, k_BTKA, v_BTKA = self._project(x_BTD, positions)
        if mask_BT is None:
            return self._attend(q_BTNA, k_BTKA, v_BTKA, is_causal=self.causal)
        return self._attend(q_BTNA, k_BTKA, v_BTKA, allowed_B1TS=allowed_pairs(mask_BT, self.causal))

    def initial_state(self, batch_size: int) -> State:
        empty = self.qkv.weight.new_zeros(batch_size, 0, self.num_kv_heads, self.head_dim)
        return empty, empty

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Layer.step`. Raises ConfigError if the layer is not causal."""
        if not self.causal:
            raise ConfigError("causal: must be true to decode step by step, got false")
        past_k, past_v = state
        position = torch.tensor([past_k.shape[1]], device=x_BD.device)
        q_BTNA, k_BTKA, v_BTKA = self._project(x_BD.unsqueeze(1), position)
        k_BSKA, v_BSKA = torch.cat((past_k, k_BTKA), dim=1), torch.cat((past_v, v_BTKA), dim=1)
        return self._attend(q_BTNA, k_BSKA, v_BSKA).squeeze(1), (k_BSKA, v_BSKA)

    def reset_parameters(self, branch_scale: float) -> None:
        init_linear(self.qkv)
        init_linear(self.output, branch_scale)

    def _project(self, x_BTD: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x_BTD).view(*x_BTD.shape[:2], -1, self.head_dim)
        qk, v_BTKA = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=2)
        if self.rope:
            qk = rotate(qk, positions)
        q_BTNA, k_BTKA = qk.split((self.num_heads, self.num_kv_heads), dim=2)
        return q_BTNA, k_BTKA, v_BTKA

    def _attend(
        self,
        q_BTNA: Tensor,
        k_BSKA: Tensor,
        v_BSKA: Tensor,
        allowed_B1TS: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        y_BNTA = F.scaled_dot_product_attention(
            q_BTNA.transpose(1, 2),
            k_BSKA.transpose(1, 2),
            v_BSKA.transpose(1, 2),
            attn_mask=allowed_B1TS,
            is_causal=is_causal,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        y_BTD: Tensor = self.output(y_BNTA.transpose(1, 2).flatten(2))
        return y_BTD


def rotate(x_BTNA: Tensor, positions: Tensor) -> Tensor:
    """Rotate each pair of neighboring features by an angle in proportion to the position.

    Su et al. 2021, "RoFormer", arXiv:2104.09864, equation 15: a product of two rotated vectors depends on the
    difference of their positions only. A pair is one complex number here, which is the fastest form on a CPU.

    Args:
        x_BTNA: queries or keys; A even.
        positions: integers, (T,) or (B, T).
    """
    pairs = x_BTNA.shape[-1] // 2
    frequencies = ROPE_BASE ** (-torch.arange(pairs, device=x_BTNA.device, dtype=torch.float32) / pairs)
    angles = positions[..., None, None] * frequencies
    as_complex = torch.view_as_complex(at_least_float32(x_BTNA).reshape(*x_BTNA.shape[:-1], pairs, 2))
    turned = as_complex * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).type_as(x_BTNA)


def _positions(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    # Real positions are counted, so that padding in the middle does not move what follows it.
    if mask_BT is None:
        return torch.arange(x_BTD.shape[1], device=x_BTD.device)
    return mask_BT.long().cumsum(dim=1) - 1


def allowed_pairs(mask_BT: Tensor, causal: bool) -> Tensor:
    """Return (B, 1, T, T), True where the query (row) may look at the key (column); no row is empty."""
    length = mask_BT.shape[1]
    allowed_BTS = mask_BT[:, None, :].expand(-1, length, -1)
    if causal:
        allowed_BTS = allowed_BTS.tril()
    # A padded query that may look nowhere is 0/0 in some kernels: let each position see itself.
    itself = torch.eye(length, dtype=torch.bool, device=mask_BT.device)
    return (allowed_BTS | itself).unsqueeze(1)
