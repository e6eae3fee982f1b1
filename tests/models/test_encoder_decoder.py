"""Laws of encoder-decoders: what padding, masks and beams may change, and how they begin and learn.

B batch, T time, S length of the source, V vocabulary, D width.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agfl_models import AutoGenModel
from agfl_models.errors import ConfigError
from agfl_models.files.store import load_model, save_model

VOCABULARY = 50
CROSS = {"type": "attention", "cross": True, "num_heads": 4, "num_kv_heads": 2}
ATTENTION = {"type": "attention", "num_heads": 4}
HYBRID_ENCODER = [{"type": "rnn", "cell": "mingru"}, {"type": "ff"}, {**ATTENTION, "window": 2}, {"type": "rnn"}]
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "attention": {
        "encoder": {"layers": [{"repeat": 2, "layers": [ATTENTION, {"type": "ff"}]}]},
        "layers": [{"repeat": 2, "layers": [ATTENTION, CROSS, {"type": "ff"}]}],
    },
    "hybrid encoder, recurrent decoder": {
        "encoder": {"layers": HYBRID_ENCODER},
        "layers": [{"type": "rnn"}, CROSS, {"type": "ff"}, {"type": "rnn", "cell": "lstm"}, CROSS],
    },
    "recurrent encoder, hybrid decoder": {
        "encoder": {"layers": [{"type": "rnn", "cell": "lstm", "hidden_dim": 12}]},
        "layers": [{"type": "rnn", "cell": "mingru"}, {**ATTENTION, "window": 3}, CROSS, {"type": "ff"}],
    },
    "post, layernorm, untied": {
        "residual": "post",
        "norm": "layernorm",
        "head": {"tied": False},
        "encoder": {"layers": HYBRID_ENCODER},
        "layers": [ATTENTION, CROSS, {"type": "ff"}],
    },
    "chains of unequal width": {
        "residual": "none",
        "norm": "rmsnorm",
        "head": {"tied": False},
        "encoder": {"layers": [{"type": "ff", "output_dim": 24}]},
        "layers": [{"type": "rnn", "hidden_dim": 20}, {**CROSS, "embed_dim": 16}, {"type": "rnn"}],
    },
}
each_model = pytest.mark.parametrize("config", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS.keys())
masks = st.lists(st.booleans(), min_size=6, max_size=6).filter(any)


def make_model(config: dict[str, Any], dim: int = 32) -> AutoGenModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bridges
        return AutoGenModel({"family": "encoder_decoder", "vocab_size": VOCABULARY, "dim": dim, **config}, seed=0)


def random_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@each_model
def test_what_comes_later_in_the_target_changes_nothing_before(config: dict[str, Any]) -> None:
    model, ids_BT, source_BS = make_model(config), random_ids(2, 6), random_ids(2, 5, seed=2)
    logits_BTV = model(ids_BT, source=source_BS)
    for t in range(5):
        changed_BT = ids_BT.clone()
        changed_BT[:, t + 1 :] = (changed_BT[:, t + 1 :] + 1) % VOCABULARY
        changed_BTV = model(changed_BT, source=source_BS)
        torch.testing.assert_close(changed_BTV[:, : t + 1], logits_BTV[:, : t + 1], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(changed_BTV[:, t + 1], logits_BTV[:, t + 1])


@each_model
def test_every_token_of_the_source_counts_from_the_first_position_on(config: dict[str, Any]) -> None:
    model, ids_BT, source_BS = make_model(config), random_ids(2, 6), random_ids(2, 5, seed=2)
    logits_BTV = model(ids_BT, source=source_BS)
    for s in range(5):
        changed_BS = source_BS.clone()
        changed_BS[:, s] = (changed_BS[:, s] + 1) % VOCABULARY
        assert not torch.allclose(model(ids_BT, source=changed_BS)[:, 0], logits_BTV[:, 0], atol=1e-6)


@each_model
@settings(max_examples=10, deadline=None)
@given(target_row=masks, source_row=masks)
def test_padding_anywhere_does_not_change_real_positions(
    config: dict[str, Any], target_row: list[bool], source_row: list[bool]
) -> None:
    model, ids_BT, source_BS = make_model(config), random_ids(1, 6), random_ids(1, 6, seed=2)
    mask_BT, source_mask_BS = torch.tensor([target_row]), torch.tensor([source_row])
    logits_BTV = model(ids_BT, mask_BT, source=source_BS, source_mask=source_mask_BS)
    alone_BTV = model(ids_BT[mask_BT][None], source=source_BS[source_mask_BS][None])
    torch.testing.assert_close(logits_BTV[mask_BT], alone_BTV[0], atol=1e-5, rtol=1e-5)


@each_model
def test_step_by_step_is_the_whole_sequence(config: dict[str, Any]) -> None:
    model, ids_BT, source_BS = make_model(config), random_ids(3, 8), random_ids(3, 6, seed=2)
    source_mask_BS = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]]).bool()
    state, outputs = model.initial_state(3, model.encode(source_BS, source_mask_BS)), []
    for ids_B in ids_BT.unbind(dim=1):
        logits_BV, state = model.step(ids_B, state)
        outputs.append(logits_BV)
    want_BTV = model(ids_BT, source=source_BS, source_mask=source_mask_BS)
    torch.testing.assert_close(torch.stack(outputs, dim=1), want_BTV, atol=1e-4, rtol=1e-4)


@each_model
def test_rows_of_a_state_can_be_reordered(config: dict[str, Any]) -> None:
    model, beams = make_model(config), torch.tensor([1, 1, 0, 1])
    memory = model.encode(random_ids(2, 6, seed=2), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    state = model.initial_state(2, memory)
    _, state = model.step(torch.tensor([3, 4]), state)
    next_B = torch.tensor([5, 6])
    logits_BV, _ = model.step(next_B, state)
    reordered = tuple(tuple(part.index_select(0, beams) for part in layer) for layer in state)
    torch.testing.assert_close(model.step(next_B[beams], reordered)[0], logits_BV[beams], atol=1e-5, rtol=1e-5)


@each_model
def test_bfloat16_gives_finite_gradients_for_every_parameter(config: dict[str, Any]) -> None:
    model, ids_BT, source_BS = make_model(config).to(torch.bfloat16), random_ids(2, 33), random_ids(2, 20, seed=2)
    logits_BTV = model(ids_BT[:, :-1], source=source_BS, source_mask=torch.rand(2, 20) < 0.8)
    F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    assert_gradients(model)


@each_model
@pytest.mark.parametrize("dim", [16, 64, 256])
def test_an_untrained_encoder_decoder_is_close_to_uniform(config: dict[str, Any], dim: int) -> None:
    model, ids_BT = make_model(config, dim), random_ids(8, 33)
    with torch.no_grad():
        logits_BTV = model(ids_BT[:, :-1], source=random_ids(8, 20, seed=2))
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(VOCABULARY), rel=0.06)


def assert_gradients(model: AutoGenModel) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_each_stack_scales_its_branches_by_its_own_depth() -> None:
    layers = [{"type": "attention"}, {"type": "ff"}]
    encoder = {"layers": [{"repeat": 4, "layers": layers}]}
    model = make_model({"encoder": encoder, "layers": [*layers, {"type": "attention", "cross": True}]}, dim=64)
    for name, depth in (("encoder.layers.0", 8), ("layers.0", 3)):
        deviation = model.state_dict()[f"{name}.output.weight"].std().item()
        assert deviation == pytest.approx((64 * depth) ** -0.5, rel=0.05)


def test_encoder_and_decoder_share_the_embedding_and_nothing_else() -> None:
    model = make_model(ENCODER_DECODERS["attention"])
    weights = model.state_dict()
    assert [name for name in weights if "embedding" in name] == ["embedding.weight"]
    assert not torch.equal(weights["encoder.layers.0.qkv.weight"], weights["layers.0.qkv.weight"])
    logits_BTV = model(random_ids(1, 3), source=random_ids(1, 4))
    (grad_VD,) = torch.autograd.grad(logits_BTV[0, 0, 0], model.embedding.weight)  # type: ignore[union-attr]
    assert grad_VD[random_ids(1, 4)[0, -1]].any()


def test_a_source_is_for_an_encoder_decoder_and_no_other() -> None:
    model, decoder = make_model(ENCODER_DECODERS["attention"]), AutoGenModel({"dim": 8, "layers": [{"type": "ff"}]})
    memory = model.encode(random_ids(1, 4))
    for run in (lambda: model(random_ids(1, 3)), lambda: model.initial_state(1)):
        with pytest.raises(
            ConfigError, match=r"^source: required with family encoder_decoder, got none.*AGFL-CONFIG-117"
        ):
            run()
    x_BTD = torch.zeros(1, 3, 8)
    for refused in (
        lambda: decoder(x_BTD, source=x_BTD),
        lambda: decoder.encode(x_BTD),
        lambda: decoder.initial_state(1, memory),
    ):
        with pytest.raises(ConfigError, match=r"^family: .*got decoder .AGFL-CONFIG-116"):
            refused()


def test_a_model_of_vectors_may_be_an_encoder_decoder() -> None:
    config = {"family": "encoder_decoder", "dim": 16, "encoder": {"layers": [{"type": "ff"}]}, "layers": [CROSS]}
    model = AutoGenModel(config, seed=0)
    assert model(torch.randn(2, 3, 16), source=torch.randn(2, 5, 16)).shape == (2, 3, 16)


def test_a_saved_model_is_the_model(tmp_path: Path) -> None:
    model, ids_BT, source_BS = make_model(ENCODER_DECODERS["attention"]), random_ids(2, 5), random_ids(2, 6, seed=2)
    save_model(tmp_path, model.config, model.state_dict())
    loaded, saved = load_model(tmp_path)
    assert saved.model.resolve() == model.config
    assert torch.equal(loaded(ids_BT, source=source_BS), model(ids_BT, source=source_BS))


@pytest.mark.parametrize("name", ["attention", "hybrid encoder, recurrent decoder"])
def test_an_encoder_decoder_learns_to_write_backward_what_it_reads(name: str) -> None:
    model, bos = make_model(ENCODER_DECODERS[name]), torch.full((64, 1), 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        source_BS = torch.randint(8, (64, 4), generator=torch.Generator().manual_seed(step))
        target_BT = source_BS.flip(1)
        logits_BTV = model(torch.cat((bos, target_BT[:, :-1]), dim=1), source=source_BS)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.4, "every batch is a new one, and without the source it stays above 2"
