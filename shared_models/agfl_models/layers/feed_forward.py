"""Feed-forward layer: a GELU perceptron or SwiGLU, at each position alike.

B batch, T time, D width of the input, H hidden width, E width of the output.
"""

from __future__ import annotations

from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from agfl_models.bounded import Size
from agfl_models.layers.layer import LAYERS, Blocks, Layer, LayerConfigBase, Memory, State, init_linear, kept_units


@LAYERS.register
class FFConfig(LayerConfigBase):
    """Sizes of a feed-forward layer.

    `hidden_dim` defaults to 4 input_dim for GELU and to the same number of weights for SwiGLU: 8/3 input_dim,
    rounded up to a multiple of 8 (Shazeer 2020, arXiv:2002.05202).
    """

    type: Literal["ff"] = "ff"
    input_dim: Size | None = None
    hidden_dim: Size | None = None
    output_dim: Size | None = None
    activation: Literal["gelu", "swiglu"] = "swiglu"

    @property
    def is_causal(self) -> bool:
        """Each position sees itself alone."""
        return True

    @property
    def is_mixer(self) -> bool:
        """Each position sees itself alone."""
        return False

    @property
    def stated_width(self) -> int | None:
        return self.input_dim

    @property
    def width_in(self) -> int:
        assert self.input_dim is not None
        return self.input_dim

    @property
    def width_out(self) -> int:
        assert self.output_dim is not None
        return self.output_dim

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        input_dim = self.input_dim or width
        default_hidden = 4 * input_dim if self.activation == "gelu" else 8 * -(-input_dim // 3)
        return self.filled(
            name,
            input_dim=input_dim,
            hidden_dim=self.hidden_dim or default_hidden,
            output_dim=self.output_dim or (width if residual else input_dim),
        )

    def narrowed(self, width: float, name: str) -> Self:
        assert self.hidden_dim is not None
        return self.model_copy(update={"hidden_dim": kept_units(width, self.hidden_dim)})

    def num_parameters(self) -> int:
        assert self.hidden_dim is not None
        matrices_in = 2 if self.activation == "swiglu" else 1
        return self.hidden_dim * (matrices_in * self.width_in + self.width_out)

    def flops_per_token(self, context_length: int) -> int:
        return 2 * self.num_parameters()

    def build(self) -> FFLayer:
        return FFLayer(self)


class FFLayer(Layer):
    """y = GELU(x A) C, or SwiGLU: y = (SiLU(x A) * (x B)) C, without biases.

    Shazeer 2020, arXiv:2002.05202, equations 2 and 6.

    Args:
        config: sizes; those left out get their defaults.
    """

    def __init__(self, config: FFConfig) -> None:
        super().__init__()
        config = config.standalone()
        assert config.hidden_dim is not None
        self.input_dim, self.output_dim = config.width_in, config.width_out
        self.expand = nn.Linear(self.input_dim, config.hidden_dim, bias=False)
        self.value: nn.Linear | None = None
        if config.activation == "swiglu":
            self.value = nn.Linear(self.input_dim, config.hidden_dim, bias=False)
        self.output = nn.Linear(config.hidden_dim, self.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        return self._apply_everywhere(x_BTD)

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        return ()

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return self._apply_everywhere(x_BD), state

    def steps(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        return self._apply_everywhere(x_BTD), state

    def reset_parameters(self, branch_scale: float) -> None:
        init_linear(self.expand)
        if self.value is not None:
            init_linear(self.value)
        init_linear(self.output, branch_scale)

    def inner_blocks(self) -> dict[str, Blocks]:
        hidden = (self.expand.out_features,)
        value: dict[str, Blocks] = {} if self.value is None else {"value.weight": (hidden, ())}
        return {"expand.weight": (hidden, ()), **value, "output.weight": ((), hidden)}

    def _apply_everywhere(self, x: Tensor) -> Tensor:
        h: Tensor = self.expand(x)
        h = F.gelu(h) if self.value is None else F.silu(h) * self.value(x)
        y: Tensor = self.output(h)
        return y
