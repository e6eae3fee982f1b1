"""Low-rank adaptation: a frozen weight W becomes W + (alpha / rank) B A, and only B is trained, or B and A.

LoRA: Hu et al. 2021, arXiv:2106.09685. A is frozen by default, as in FFA-LoRA (Sun et al. 2024, arXiv:2403.12313):
where all owners hold one A, the mean of their products B A is the product of the mean B, so averaging is exact.
O outputs and I inputs of the layer, R rank.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from agfl_models.bounded import Factor, Seed, Size
from agfl_models.errors import ConfigError
from agfl_models.validation import Config, nearest


class LoRAConfig(Config):
    """A low-rank adapter.

    rank: R; alpha: the product is scaled by alpha / rank; targets: names of the linear layers that get one, such as
    q_proj, wherever in the model they are. train_a: A is trained and travels too. seed: A is drawn from it.
    """

    rank: Size = 8
    alpha: Factor = 16.0
    targets: tuple[str, ...] = Field(min_length=1, max_length=64, fail_fast=True)
    train_a: bool = False
    seed: Seed = 0


class LowRank(nn.Module):
    """The parametrization of one weight: W in, W + (alpha / rank) B A out."""

    def __init__(self, a_RI: Tensor, num_outputs: int, config: LoRAConfig, transposed: bool) -> None:
        super().__init__()
        self.a = nn.Parameter(a_RI, requires_grad=config.train_a)
        self.b = nn.Parameter(a_RI.new_zeros(num_outputs, config.rank))
        self._scale, self._transposed = config.alpha / config.rank, transposed

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        product_OI = self._scale * (self.b @ self.a)
        return weight + (product_OI.T if self._transposed else product_OI)


def add_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Freeze `model` and adapt its target layers, in place.

    Raises:
        ConfigError: a target names no linear layer, or one whose weight another layer shares.
    """
    layers = {name: module for name, module in model.named_modules() if is_linear(module)}
    targets = {name: layer for name, layer in layers.items() if any(_names(target, name) for target in config.targets)}
    for target in config.targets:
        if not any(_names(target, name) for name in targets):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ConfigError(
                "AGFL-CONFIG-032",
                f"model.lora.targets: must name linear layers of the model, got {target!r}{nearest(target, known)}",
            )
    for name, layer in targets.items():
        if sum(getattr(module, "weight", None) is layer.weight for module in model.modules()) > 1:
            raise ConfigError(
                "AGFL-CONFIG-033",
                f"model.lora.targets: must not name a layer whose weight another one shares, got {name}",
            )
    model.requires_grad_(False)
    for name, layer in targets.items():
        _adapt(layer, name, config)


def is_adapter(name: str) -> bool:
    """Whether a parameter of an adapted model belongs to the adapter."""
    return name.endswith((".parametrizations.weight.0.a", ".parametrizations.weight.0.b"))


def merge_lora(model: nn.Module) -> None:
    """Make each adapted weight an ordinary one, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _adapt(layer: nn.Module, name: str, config: LoRAConfig) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    transposed = not isinstance(layer, nn.Linear)  # W of GPT-2's Conv1D is (I, O)
    num_outputs, num_inputs = weight.T.shape if transposed else weight.shape
    a_RI = torch.from_numpy(_draw(config, name, num_inputs)).to(weight)
    parametrize.register_parametrization(layer, "weight", LowRank(a_RI, num_outputs, config, transposed))


def _draw(config: LoRAConfig, name: str, num_inputs: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Draw A (R, I) uniformly from +-1 / sqrt(I), as peft does.

    From raw random bits, whose stream NumPy keeps stable: every owner must get the same A, with whatever version.
    """
    label = f"agfl/lora/v1\x1f{config.seed}\x1f{name}"
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "big")
    bits = np.random.Philox(key=key).random_raw(config.rank * num_inputs) >> np.uint64(40)
    uniform = (bits.astype(np.float64) - 2**23) / 2**23  # in [-1, 1)
    return (uniform / math.sqrt(num_inputs)).astype(np.float32).reshape(config.rank, num_inputs)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a matrix product: PyTorch's, or that of GPT-2 in transformers."""
    return isinstance(module, nn.Linear) or any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _names(target: str, name: str) -> bool:
    return name == target or name.endswith("." + target)
