"""Self-attention with grouped queries and rotary positions, on torch's scaled_dot_product_attention.

B batch, T time, D model width, N query heads, K key-value heads, A width of one head, I width of
all queries (N * A), S positions looked at.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from agfl_models.bounded import Length
from agfl_models.errors import ConfigError
from agfl_models.layers.dot_product import DotProductConfig, attend
from agfl_models.layers.layer import Blocks, Layer, Memory, State, at_least_float32, init_linear

ROPE_BASE = 10_000.0
BLOCK = 128  # queries that look at earlier positions at a time


class AttentionConfig(DotProductConfig):
    """Sizes of a self-attention layer, and what a position sees.

    Attributes:
        causal: nothing that comes later; by default true in a decoder and false in an encoder.
        window: the last `window` positions up to itself only, and as many ahead if not causal; None for all.
    """

    type: Literal["attention"] = "attention"
    cross: Literal[False] = Field(default=False, exclude=True)
    causal: bool | None = None
    window: Length | None = None

    @property
    def is_causal(self) -> bool:
        """As `causal` says; by default it is."""
        return self.causal is not False

    @property
    def is_mixer(self) -> bool:
        """Every position looks at others."""
        return True

    def in_stack(self, causal: bool, memory_dim: int | None) -> Self:
        return self if self.causal is not None else self.model_copy(update={"causal": causal})

    def num_parameters(self) -> int:
        return self.width_in * (2 * self.width_inner + 2 * self.width_kv)

    def flops_per_token(self, context_length: int) -> int:
        """2 for each weight, and 4 * num_heads * head_dim for each position seen: a score and a term of the sum."""
        seen = context_length
        if self.window is not None:
            seen = min(seen, self.window if self.causal else 2 * self.window - 1)
        return 2 * self.num_parameters() + 4 * seen * self.width_inner

    def build(self) -> AttentionLayer:
        return AttentionLayer(self)


class AttentionLayer(Layer):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) with rotary positions.

    Each `num_heads / num_kv_heads` query heads share one key-value head; no biases. The state is the keys and
    values of the positions so far, at most `window`, and their number: (k_BSKA, v_BSKA, seen_B), keys already
    rotated. The window counts real positions (Beltagy et al. 2020, "Longformer", arXiv:2004.05150, section 3.1).

    Args:
        config: sizes; those left out get their defaults.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        config = config.standalone()
        assert config.num_heads is not None
        assert config.num_kv_heads is not None
        assert config.head_dim is not None
        self.input_dim = self.output_dim = config.width_in
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.causal, self.rope, self.window = config.causal is not False, config.rope, config.window
        self.qkv = nn.Linear(self.input_dim, config.width_inner + 2 * config.width_kv, bias=False)
        self.output = nn.Linear(config.width_inner, self.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        length = x_BTD.shape[1]
        if mask_BT is None and self.window is not None and self.window < length:
            mask_BT = torch.ones(1, length, dtype=torch.bool, device=x_BTD.device)
        q_BTNA, k_BTKA, v_BTKA = self._project(x_BTD, _positions(x_BTD, mask_BT))
        allowed_B1TS = None if mask_BT is None else allowed_pairs(mask_BT, self.causal, self.window)
        y_BTI = attend(q_BTNA, k_BTKA, v_BTKA, allowed_B1TS, is_causal=self.causal and allowed_B1TS is None)
        return self._write(y_BTI)

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        empty = self.qkv.weight.new_zeros(batch_size, 0, self.num_kv_heads, self.head_dim)
        return empty, empty, torch.zeros(batch_size, dtype=torch.long, device=empty.device)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Layer.step`. Raises ConfigError if the layer is not causal."""
        y_BTD, state = self.steps(x_BD.unsqueeze(1), state)
        return y_BTD.squeeze(1), state

    def steps(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Layer.steps`. Raises ConfigError if the layer is not causal."""
        if not self.causal:
            raise ConfigError("AGFL-CONFIG-086", "causal: must be true to decode step by step, got false")
        past_k, past_v, seen_B = state
        new = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        q_BTNA, k_BTKA, v_BTKA = self._project(x_BTD, seen_B.unsqueeze(1) + new)
        k_BSKA, v_BSKA = torch.cat((past_k, k_BTKA), dim=1), torch.cat((past_v, v_BTKA), dim=1)
        oldest = 0 if self.window is None else -self.window
        if len(new) == 1:
            y_BTI = attend(q_BTNA, k_BSKA[:, oldest:], v_BSKA[:, oldest:])
        elif past_k.shape[1] == 0 and self.window is None:
            y_BTI = attend(q_BTNA, k_BSKA, v_BSKA, is_causal=True)
        else:
            y_BTI = self._attend_in_blocks(q_BTNA, k_BSKA, v_BSKA)
        return self._write(y_BTI), (k_BSKA[:, oldest:], v_BSKA[:, oldest:], seen_B + len(new))

    def _attend_in_blocks(self, q_BTNA: Tensor, k_BSKA: Tensor, v_BSKA: Tensor) -> Tensor:
        """Return what the last T positions see of the S there are; blocks, since T times S may be much."""
        parts, num_past = [], k_BSKA.shape[1] - q_BTNA.shape[1]
        for first in range(0, q_BTNA.shape[1], BLOCK):
            block_BTNA = q_BTNA[:, first : first + BLOCK]
            place = num_past + first  # of the block's first position
            oldest = 0 if self.window is None else max(0, place - self.window + 1)
            seen = slice(oldest, place + block_BTNA.shape[1])
            allowed_TS = torch.ones(block_BTNA.shape[1], seen.stop - oldest, dtype=torch.bool, device=q_BTNA.device)
            allowed_TS = allowed_TS.tril(place - oldest)
            if self.window is not None:
                allowed_TS = allowed_TS.triu(place - oldest - self.window + 1)
            parts.append(attend(block_BTNA, k_BSKA[:, seen], v_BSKA[:, seen], allowed_TS[None, None]))
        return torch.cat(parts, dim=1)

    def reset_parameters(self, branch_scale: float) -> None:
        init_linear(self.qkv)
        init_linear(self.output, branch_scale)

    def inner_blocks(self) -> dict[str, Blocks]:
        inner, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {"qkv.weight": ((inner, key_value, key_value), ()), "output.weight": ((), (inner,))}

    def _project(self, x_BTD: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x_BTD).view(*x_BTD.shape[:2], -1, self.head_dim)
        qk, v_BTKA = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=2)
        if self.rope:
            qk = rotate(qk, positions)
        q_BTNA, k_BTKA = qk.split((self.num_heads, self.num_kv_heads), dim=2)
        return q_BTNA, k_BTKA, v_BTKA

    def _write(self, heads_BTI: Tensor) -> Tensor:
        y_BTD: Tensor = self.output(heads_BTI)
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
    if mask_BT is None:
        return torch.arange(x_BTD.shape[1], device=x_BTD.device)
    return _count_real(mask_BT)


def _count_real(mask_BT: Tensor) -> Tensor:
    # Real positions are counted, so that padding in the middle does not move what follows it.
    return mask_BT.long().cumsum(dim=1) - 1


def allowed_pairs(mask_BT: Tensor, causal: bool, window: int | None = None) -> Tensor:
    """Return (B, 1, T, T), True where the query (row) may look at the key (column); no row is empty."""
    length = mask_BT.shape[1]
    allowed_BTS = mask_BT[:, None, :].expand(-1, length, -1)
    if causal:
        allowed_BTS = allowed_BTS.tril()
    if window is not None:
        positions_BT = _count_real(mask_BT)
        distances_BTS = positions_BT[:, :, None] - positions_BT[:, None, :]
        allowed_BTS = allowed_BTS & (distances_BTS.abs() < window)
    # A padded query that may look nowhere is 0/0 in some kernels: let each position see itself.
    itself = torch.eye(length, dtype=torch.bool, device=mask_BT.device)
    return (allowed_BTS | itself).unsqueeze(1)
