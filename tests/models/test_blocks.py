"""A model's blocks, and gradients from what goes into them alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_pretrained import ARCHITECTURES, ENCODERS, SEQ2SEQ, write_pretrained
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from agfl_models import AutoGenModel
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.model.blocks import blocks_of, recomputed
from agfl_models.model.families import build_model

ATTENTION, FF = {"type": "attention", "num_heads": 4}, {"type": "ff", "hidden_dim": 64}
MODELS: dict[str, dict[str, Any]] = {
    "blocks of each type": {"layers": [{"repeat": 3, "layers": [ATTENTION, FF, {"type": "rnn", "cell": "mingru"}]}]},
    "cells": {"layers": [{"type": "rnn", "cell": cell} for cell in ("gru", "lstm", "mingru", "gated_delta")]},
    "encoder-decoder": {
        "family": "encoder_decoder",
        "encoder": {"layers": [{"repeat": 2, "layers": [ATTENTION, FF]}]},
        "layers": [{"repeat": 2, "layers": [ATTENTION, {**ATTENTION, "cross": True}, FF]}],
    },
}
IDS_BT = torch.randint(5, 50, (4, 24), generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module, *, is_recomputed: bool, **inputs: Tensor) -> tuple[dict[str, Tensor], int]:
    """Return each parameter's gradient, and how many bytes the forward pass kept for the backward one."""
    kept = dict[int, int]()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    model.train()
    torch.manual_seed(3)
    with recomputed(model) if is_recomputed else nullcontext(), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(IDS_BT, **inputs).logsumexp(-1).square().mean()
        size = sum(kept.values())
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}, size


def assert_same_and_less(model: nn.Module, share: float, **inputs: Tensor) -> None:
    before = [block.forward for block in blocks_of(model)]
    whole, whole_size = gradients(model, is_recomputed=False, **inputs)
    found, size = gradients(model, is_recomputed=True, **inputs)
    assert [block.forward for block in blocks_of(model)] == before
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    assert size < share * whole_size, (size, whole_size)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_are_the_same_and_less_is_kept_for_them(name: str) -> None:
    model = AutoGenModel({"vocab_size": 50, "dim": 32, **MODELS[name]}, seed=1)
    assert_same_and_less(model, 0.6, **({"source": IDS_BT.flip(1)} if name == "encoder-decoder" else {}))


@pytest.mark.parametrize("kind", ["llama", "bart", "bert"])
def test_a_pretrained_model_gives_the_same_gradients(kind: str, tmp_path: Path) -> None:
    settings = {"head": {"type": "span"}} if kind in ENCODERS else {}
    folder, architecture = write_pretrained(tmp_path / kind, kind), ARCHITECTURES[kind]
    config = HuggingFaceConfig(family="huggingface", architecture=architecture, folder=folder, **settings)
    model = build_model(config, 0)
    assert_same_and_less(model, 0.9, **({"source": IDS_BT.flip(1)} if kind in SEQ2SEQ else {}))


def test_blocks_are_outermost_so_that_no_parameter_is_shared_out_twice() -> None:
    """What adapts a weight, as LoRA does, is in a list of its own inside a block."""
    block = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))
    blocks = nn.ModuleList([block, nn.Linear(2, 2)])
    assert list(blocks_of(nn.Sequential(nn.Embedding(3, 2), nn.Sequential(blocks)))) == list(blocks)


def test_a_block_that_stands_in_a_model_twice_or_has_a_forward_of_its_own_is_as_before() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block, other = nn.Linear(3, 3), nn.Linear(3, 3)
            vars(other)["forward"] = lambda x: 2 * x
            self.blocks = nn.ModuleList([block, block, other])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x).tanh()
            return x

    model, x = Twice(), torch.ones(2, 3)
    expected = model(x)
    with recomputed(model):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), expected)
    assert "forward" not in vars(model.blocks[0])
