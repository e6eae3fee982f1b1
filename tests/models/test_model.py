"""Laws of whole models: causality, decoding, padding, precision, seeds, and how an untrained model begins.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agfl_models import AttentionLayer, AutoGenModel, FFLayer, RNNLayer
from agfl_models.errors import ConfigError
from agfl_models.model.sequence_model import own_generator

VOCABULARY = 259
HYBRID = [
    {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
    {"type": "ff"},
    {"repeat": 2, "layers": [{"type": "rnn", "cell": "mingru"}, {"type": "ff", "activation": "gelu"}]},
    {"type": "rnn", "cell": "gru"},
    {"type": "rnn", "cell": "lstm", "hidden_dim": 20},
]
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "pre": {"vocab_size": VOCABULARY, "dim": 32, "layers": HYBRID},
    "post, layernorm": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "residual": "post",
        "norm": "layernorm",
        "layers": HYBRID,
    },
    "untied, no norm": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "norm": "none",
        "head": {"tied": False},
        "layers": HYBRID,
    },
    "chain, normed": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "residual": "none",
        "norm": "rmsnorm",
        "head": {"tied": False},
        "layers": HYBRID,
    },
}
each_model = pytest.mark.parametrize("config", LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS.keys())


def make_model(config: dict[str, Any]) -> AutoGenModel:
    return AutoGenModel(config, seed=0)


def random_ids(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


@each_model
def test_what_comes_later_changes_nothing_before(config: dict[str, Any]) -> None:
    model, ids_BT = make_model(config), random_ids(2, 8)
    logits_BTV = model(ids_BT)
    for t in range(7):
        changed_BT = ids_BT.clone()
        changed_BT[:, t + 1 :] = (changed_BT[:, t + 1 :] + 1) % VOCABULARY
        logits_changed_BTV = model(changed_BT)
        torch.testing.assert_close(logits_changed_BTV[:, : t + 1], logits_BTV[:, : t + 1], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(logits_changed_BTV[:, t + 1], logits_BTV[:, t + 1])


@each_model
def test_step_by_step_is_the_whole_sequence(config: dict[str, Any]) -> None:
    model, ids_BT = make_model(config), random_ids(2, 12)
    state, outputs = model.initial_state(2), []
    for ids_B in ids_BT.unbind(dim=1):
        logits_BV, state = model.step(ids_B, state)
        outputs.append(logits_BV)
    torch.testing.assert_close(torch.stack(outputs, dim=1), model(ids_BT), atol=1e-4, rtol=1e-4)


@each_model
@pytest.mark.parametrize("row", [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 0, 1]])
def test_padding_anywhere_does_not_change_real_positions(config: dict[str, Any], row: list[int]) -> None:
    model, ids_BT = make_model(config), random_ids(1, 6)
    mask_BT = torch.tensor([row]).bool()
    alone_BTV = model(ids_BT[mask_BT].unsqueeze(0))
    torch.testing.assert_close(model(ids_BT, mask_BT)[mask_BT], alone_BTV[0], atol=1e-5, rtol=1e-5)


@each_model
def test_bfloat16_gives_finite_gradients_for_every_parameter(config: dict[str, Any]) -> None:
    model, ids_BT = make_model(config).to(torch.bfloat16), random_ids(2, 65)
    logits_BTV = model(ids_BT[:, :-1])
    F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_layers_are_the_layers_and_nothing_more() -> None:
    model = make_model(LANGUAGE_MODELS["pre"])
    kinds = [AttentionLayer, FFLayer, RNNLayer, FFLayer, RNNLayer, FFLayer, RNNLayer, RNNLayer]
    assert [type(layer) for layer in model.layers] == kinds
    assert isinstance(model.layers, torch.nn.ModuleList)


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    config = LANGUAGE_MODELS["pre"]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = AutoGenModel(config, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = AutoGenModel(config, seed=3).state_dict(), AutoGenModel(config, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    torch.manual_seed(3)
    unseeded = AutoGenModel(config).state_dict()
    assert all(torch.equal(first[name], unseeded[name]) for name in first)


def test_two_threads_that_draw_weights_at_a_time_draw_what_each_draws_alone() -> None:
    began, other_drew, has_drawn = (threading.Event() for _ in range(3))
    drawn = list[torch.Tensor]()

    def draw_in_between() -> None:
        began.wait()
        with own_generator(2):
            torch.rand(3)
            other_drew.set()
            has_drawn.wait(0.2)

    other = threading.Thread(target=draw_in_between)
    other.start()
    with own_generator(1):
        drawn.append(torch.rand(3))
        began.set()
        other_drew.wait(0.2)
        drawn.append(torch.rand(3))
        has_drawn.set()
    other.join()
    with own_generator(1):
        assert torch.equal(torch.cat(drawn), torch.rand(6))


def test_training_draws_no_random_numbers() -> None:
    model = make_model(LANGUAGE_MODELS["pre"]).train()
    before = torch.get_rng_state()
    model(random_ids(1, 4)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@each_model
@pytest.mark.parametrize("dim", [16, 64, 256])
def test_an_untrained_model_is_close_to_uniform(config: dict[str, Any], dim: int) -> None:
    model, ids_BT = make_model({**config, "dim": dim}), random_ids(8, 65)
    with torch.no_grad():
        loss = F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(VOCABULARY), rel=0.05)


def test_depth_does_not_inflate_the_residual_stream() -> None:
    sizes = []
    for repeat in (1, 16):
        layers = [{"repeat": repeat, "layers": [{"type": "attention"}, {"type": "ff"}]}]
        model = make_model({"dim": 64, "layers": layers})
        x_BTD = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(0))
        sizes.append(float(model(x_BTD).detach().std()))
        deviation = model.state_dict()["layers.0.output.weight"].std().item()
        assert deviation == pytest.approx((64 * 2 * repeat) ** -0.5, rel=0.05)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_a_model_learns_to_repeat_a_sentence() -> None:
    layers = [{"type": "rnn", "cell": "mingru"}, {"type": "ff"}, {"type": "attention"}, {"type": "ff"}]
    model = make_model({"vocab_size": VOCABULARY, "dim": 32, "layers": layers})
    ids_BT = torch.tensor([list(b"what is past is prologue. ") * 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(120):
        loss = F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.5


def test_a_model_that_looks_ahead_cannot_decode_step_by_step() -> None:
    model = make_model({"dim": 8, "layers": [{"type": "attention", "causal": False}]})
    with pytest.raises(ConfigError, match="causal: must be true"):
        model.step(torch.randn(1, 8), model.initial_state(1))
