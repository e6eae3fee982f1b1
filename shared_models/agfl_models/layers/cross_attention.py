"""Cross-attention: a decoder looks at what the encoder read (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3).

B batch, T time, D model width, S length of the memory, N query heads, K key-value heads, A width of one head.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from agfl_models.bounded import Size
from agfl_models.layers.dot_product import DotProductConfig, attend
from agfl_models.layers.layer import Blocks, Layer, Memory, State, init_linear


class CrossAttentionConfig(DotProductConfig):
    """Sizes of a cross-attention layer; `memory_dim` defaults to the width of the encoder's output."""

    type: Literal["attention"] = "attention"
    cross: Literal[True]
    # A distance between a target's position and a source's means nothing.
    rope: Literal[False] = Field(default=False, exclude=True)
    memory_dim: Size | None = None

    @property
    def is_causal(self) -> bool:
        """It looks at another sequence only."""
        return True

    @property
    def is_mixer(self) -> bool:
        """It moves nothing between positions of its own stack."""
        return False

    @property
    def needs_memory(self) -> bool:
        """The encoder's output."""
        return True

    def in_stack(self, causal: bool, memory_dim: int | None) -> Self:
        return self if self.memory_dim is not None else self.model_copy(update={"memory_dim": memory_dim})

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        resolved = super().resolved(width, residual, name)
        return resolved.filled(name, memory_dim=self.memory_dim or resolved.embed_dim)

    @property
    def width_memory(self) -> int:
        """Width of the encoder's output."""
        assert self.memory_dim is not None
        return self.memory_dim

    def num_parameters(self) -> int:
        return 2 * self.width_in * self.width_inner + 2 * self.width_memory * self.width_kv

    def flops_per_token(self, context_length: int) -> int:
        """As for self-attention, with a memory of `context_length` positions and as many that look at it."""
        return 2 * self.num_parameters() + 4 * context_length * self.width_inner

    def build(self) -> CrossAttentionLayer:
        return CrossAttentionLayer(self)


class CrossAttentionLayer(Layer):
    """Grouped-query attention from each position to the memory; no biases, no positions.

    The state is the memory as this layer sees it, the same at every step: (k_BSKA, v_BSKA, mask_BS). A memory
    without a real position reads as zeros.

    Args:
        config: sizes; those left out get their defaults.
    """

    def __init__(self, config: CrossAttentionConfig) -> None:
        super().__init__()
        config = config.standalone()
        assert config.head_dim is not None
        self.input_dim = self.output_dim = config.width_in
        self.head_dim = config.head_dim
        self.query = nn.Linear(self.input_dim, config.width_inner, bias=False)
        self.key_value = nn.Linear(config.width_memory, 2 * config.width_kv, bias=False)
        self.output = nn.Linear(config.width_inner, self.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        return self._look(x_BTD, self.initial_state(len(x_BTD), memory))

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        assert memory is not None, "cross-attention needs the encoder's memory"
        assert len(memory.states_BSD) == batch_size, "one memory for each row of the batch"
        k_BSKA, v_BSKA = self.key_value(memory.states_BSD).unflatten(-1, (2, -1, self.head_dim)).unbind(2)
        mask_BS = memory.mask_BS
        if mask_BS is None:
            return k_BSKA, v_BSKA, torch.ones(k_BSKA.shape[:2], dtype=torch.bool, device=k_BSKA.device)
        return k_BSKA, v_BSKA * mask_BS[:, :, None, None], mask_BS

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return self._look(x_BD.unsqueeze(1), state).squeeze(1), state

    def steps(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        return self._look(x_BTD, state), state

    def reset_parameters(self, branch_scale: float) -> None:
        init_linear(self.query)
        init_linear(self.key_value)
        init_linear(self.output, branch_scale)

    def inner_blocks(self) -> dict[str, Blocks]:
        inner, key_value = (self.query.out_features,), self.key_value.out_features // 2
        return {
            "query.weight": (inner, ()),
            "key_value.weight": ((key_value, key_value), ()),
            "output.weight": ((), inner),
        }

    def _look(self, x_BTD: Tensor, state: State) -> Tensor:
        k_BSKA, v_BSKA, mask_BS = state
        q_BTNA = self.query(x_BTD).unflatten(-1, (-1, self.head_dim))
        y_BTD: Tensor = self.output(attend(q_BTNA, k_BSKA, v_BSKA, allowed_keys(mask_BS)))
        return y_BTD


def allowed_keys(mask_BS: Tensor) -> Tensor:
    """Return (B, 1, 1, S), True where every query may look; no row is empty."""
    # Where nothing is real all values are zero, and looking at all of them avoids 0/0 in some kernels.
    allowed_BS = mask_BS | ~mask_BS.any(dim=1, keepdim=True)
    return allowed_BS[:, None, None, :]
