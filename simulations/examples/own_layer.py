"""A layer of your own, in one file: a gated leaky average, which runs name under `layers` and a search proposes.

Nothing of the package is edited: the layer registers itself. Two runs show it, both with secure sums: a model that is
made of it, and a search that finds out whether it does better than attention. Run it:

    python simulations/examples/own_layer.py runs/leaky

B batch, T time, D width of the input, H hidden width, E width of the output.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, Self

import torch
from own_text import OWNERS
from torch import Tensor, nn

import agfl
from agfl_models.layers.layer import (
    LAYERS,
    Blocks,
    Layer,
    LayerConfigBase,
    Memory,
    State,
    init_linear,
    kept_units,
)
from agfl_models.model.config import ModelConfig
from agfl_protocol.config.run_config import load_run_config


@LAYERS.register
class LeakyConfig(LayerConfigBase):
    """Sizes of a leaky average: `hidden_dim` defaults to input_dim."""

    type: Literal["leaky"] = "leaky"
    input_dim: int | None = None
    hidden_dim: int | None = None
    output_dim: int | None = None

    @property
    def is_causal(self) -> bool:
        """A position sees what came before it."""
        return True

    @property
    def is_mixer(self) -> bool:
        """So a search puts it in the place of attention."""
        return True

    @property
    def stated_width(self) -> int | None:
        return self.input_dim

    @property
    def width_in(self) -> int:
        assert self.input_dim is not None
        return self.input_dim

    @property
    def width_hidden(self) -> int:
        assert self.hidden_dim is not None
        return self.hidden_dim

    @property
    def width_out(self) -> int:
        assert self.output_dim is not None
        return self.output_dim

    def resolved(self, width: int, residual: bool, name: str) -> Self:
        input_dim = self.input_dim or width
        output_dim = self.output_dim or (width if residual else input_dim)
        return self.filled(name, input_dim=input_dim, hidden_dim=self.hidden_dim or input_dim, output_dim=output_dim)

    def narrowed(self, width: float, name: str) -> Self:
        return self.model_copy(update={"hidden_dim": kept_units(width, self.width_hidden)})

    def num_parameters(self) -> int:
        return self.width_hidden * (2 * self.width_in + self.width_out + 1)

    def flops_per_token(self, context_length: int) -> int:
        return 2 * self.width_hidden * (2 * self.width_in + self.width_out)

    def build(self) -> Layer:
        return LeakyLayer(self)


class LeakyLayer(Layer):
    """y_t = (sigmoid(x_t G) * h_t) C with h_t = a h_{t-1} + (1 - a) x_t B, where each unit learns an a in (0, 1)."""

    def __init__(self, config: LeakyConfig) -> None:
        super().__init__()
        config = config.standalone()
        self.input_dim, self.output_dim = config.width_in, config.width_out
        self.expand = nn.Linear(self.input_dim, 2 * config.width_hidden, bias=False)
        self.leak_H = nn.Parameter(torch.empty(config.width_hidden))
        self.output = nn.Linear(config.width_hidden, self.output_dim, bias=False)
        self.reset_parameters(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        state, outputs = self.initial_state(len(x_BTD)), []
        for t, x_BD in enumerate(x_BTD.unbind(1)):
            y_BE, (after_BH,) = self.step(x_BD, state)
            outputs.append(y_BE)
            # Padding leaves the average as it is.
            state = (after_BH if mask_BT is None else torch.where(mask_BT[:, t, None], after_BH, state[0]),)
        return torch.stack(outputs, dim=1)

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> State:
        return (self.leak_H.new_zeros(batch_size, len(self.leak_H)),)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        value_BH, gate_BH = self.expand(x_BD).chunk(2, dim=-1)
        after_BH = torch.lerp(value_BH, state[0], self.leak_H.sigmoid())
        return self.output(gate_BH.sigmoid() * after_BH), (after_BH,)

    def reset_parameters(self, branch_scale: float) -> None:
        init_linear(self.expand)
        nn.init.uniform_(self.leak_H, -2.0, 3.0)
        init_linear(self.output, branch_scale)

    def inner_blocks(self) -> dict[str, Blocks]:
        hidden = (self.output.in_features,)
        return {"expand.weight": (hidden * 2, ()), "leak_H": (hidden,), "output.weight": ((), hidden)}


def content(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a run whose model has these layers."""
    return {
        "num_rounds": 4,
        "task": {"type": "language_modeling", "sequence_length": 32},
        "model": {"vocab_size": 259, "dim": 32, "layers": list(layers)},
        "training": {"optimizer": {"type": "adamw", "lr": 0.005}, "batch_size": 8, "local_steps": 6},
        "evaluation": {"every": 2, "max_examples": 32},
        **more,
    }


def run(folder: str) -> agfl.History:
    """Train a model that is made of the layer, then let it race against attention."""
    leaky = content({"type": "leaky"}, {"type": "ff"})
    history = agfl.simulate(leaky, owners=OWNERS, out=f"{folder}/leaky", progress=False)
    first, last = history.rows[0]["eval/bits_per_byte"], history.rows[-1]["eval/bits_per_byte"]
    print(f"bits per byte of what owners hold out: {first:.2f} untrained, {last:.2f} with the leaky average")
    race = {"slate": ["configured", "leaky"], "rungs": [2, 2]}
    attention = content({"type": "attention", "num_heads": 2}, {"type": "ff"}, search=race)
    found = agfl.simulate(attention, owners=OWNERS, out=f"{folder}/search", progress=False)
    chosen = load_run_config(found.folder / "search" / "chosen.yaml").model
    assert isinstance(chosen, ModelConfig)
    print(f"of attention and the leaky average, the search chose {chosen.layers[0].type}")
    return history


if __name__ == "__main__":
    run(sys.argv[1])
