"""Laws of encoders and the heads that read them: padding, precision, and how they begin and learn.

B batch, T time, C classes.
"""

from __future__ import annotations

import math
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
from agfl_models.model.heads import PADDING_LOGIT

VOCABULARY = 50
LAYERS = [
    {"type": "rnn", "cell": "mingru"},
    {"type": "ff"},
    {"type": "attention", "num_heads": 4, "window": 2},
    {"type": "rnn"},
]
HEADS: dict[str, dict[str, Any]] = {
    "span": {"type": "span"},
    "classification": {"type": "classification", "num_classes": 3},
}
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
masks = st.lists(st.booleans(), min_size=6, max_size=6).filter(any)


def make_encoder(head: dict[str, Any] | None, dim: int = 32) -> AutoGenModel:
    config = {"family": "encoder", "vocab_size": VOCABULARY, "dim": dim, "head": head, "layers": LAYERS}
    return AutoGenModel(config, seed=0)


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def distributions(logits: Tensor) -> Tensor:
    """Return what a softmax goes over: logits_BC as it is, logits_BT2 as one row for all starts, one for all ends."""
    return logits if logits.dim() == 2 else logits.transpose(1, 2).flatten(0, 1)


@each_head
@pytest.mark.parametrize("dim", [16, 64, 256])
def test_an_untrained_head_is_close_to_uniform(head: dict[str, Any], dim: int) -> None:
    with torch.no_grad():
        rows = distributions(make_encoder(head, dim)(random_ids(8, 33)))
    loss = F.cross_entropy(rows, torch.randint(rows.shape[1], (len(rows),)))
    assert float(loss) == pytest.approx(math.log(rows.shape[1]), rel=0.05)


@each_head
def test_a_head_gives_finite_gradients_under_autocast(head: dict[str, Any]) -> None:
    model, mask_BT = make_encoder(head), torch.rand(3, 20) < 0.8
    mask_BT[:, 0] = True
    with torch.autocast("cpu", torch.bfloat16):
        rows = distributions(model(random_ids(3, 20), mask_BT))
    F.cross_entropy(rows.float(), torch.zeros(len(rows), dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    assert_gradients(model)


def assert_gradients(model: AutoGenModel) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@settings(max_examples=15, deadline=None)
@given(row=masks)
def test_padding_does_not_change_the_answer_of_a_head(row: list[bool]) -> None:
    ids_BT, mask_BT = random_ids(1, 6), torch.tensor([row])
    alone_BT = ids_BT[mask_BT][None]
    model = make_encoder(HEADS["classification"])
    torch.testing.assert_close(model(ids_BT, mask_BT), model(alone_BT), atol=1e-5, rtol=1e-5)
    model = make_encoder(HEADS["span"])
    logits_BT2, alone_BT2 = model(ids_BT, mask_BT), model(alone_BT)
    assert (logits_BT2[~mask_BT] == PADDING_LOGIT).all()
    torch.testing.assert_close(logits_BT2.softmax(1)[mask_BT], alone_BT2.softmax(1)[0], atol=1e-5, rtol=1e-5)
    model = make_encoder(None)
    torch.testing.assert_close(model(ids_BT, mask_BT)[mask_BT], model(alone_BT)[0], atol=1e-5, rtol=1e-5)


def test_a_sequence_without_a_real_position_gives_finite_classes() -> None:
    logits_BC = make_encoder(HEADS["classification"])(random_ids(2, 5), torch.zeros(2, 5, dtype=torch.bool))
    assert logits_BC.isfinite().all()


def test_an_encoder_sees_both_ways_and_does_not_decode() -> None:
    model, ids_BT = make_encoder(None), random_ids(1, 6)
    changed_BT = (ids_BT + torch.tensor([[0, 0, 0, 0, 0, 1]])) % VOCABULARY
    assert not torch.allclose(model(ids_BT)[:, 0], model(changed_BT)[:, 0])
    message = "^family: must be decoder or encoder_decoder to decode step by step, got encoder.*AGFL-CONFIG-115"
    with pytest.raises(ConfigError, match=message):
        model.initial_state(1)


def test_an_encoder_tells_types_apart_as_far_as_it_knows_them() -> None:
    config = {"family": "encoder", "vocab_size": VOCABULARY, "dim": 32, "layers": LAYERS}
    two, none = AutoGenModel({**config, "type_vocab_size": 2}, seed=0), AutoGenModel(config, seed=0)
    ids_BT, types_BT = random_ids(2, 5), torch.tensor([[0, 1, 1, 0, 1], [2, 0, 0, 3, 0]])
    assert torch.equal(none(ids_BT, types_BT=types_BT), none(ids_BT))
    assert not torch.allclose(two(ids_BT, types_BT=types_BT), two(ids_BT))
    assert torch.equal(two(ids_BT, types_BT=types_BT), two(ids_BT, types_BT=types_BT.clamp(max=1)))
    assert torch.equal(two(ids_BT), two(ids_BT, types_BT=torch.zeros_like(ids_BT)))


@each_head
def test_a_saved_encoder_is_the_encoder(head: dict[str, Any], tmp_path: Path) -> None:
    model = make_encoder(head)
    save_model(tmp_path, model.config, model.state_dict())
    loaded, saved = load_model(tmp_path)
    assert saved.model.resolve() == model.config
    assert torch.equal(loaded(random_ids(2, 5)), model(random_ids(2, 5)))


def test_a_span_head_learns_to_point() -> None:
    model = make_encoder(HEADS["span"])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(2, VOCABULARY, (64, 12), generator=generator)
        start_B = torch.randint(9, (64,), generator=generator)
        rows_B = torch.arange(64)
        ids_BT[rows_B, start_B], ids_BT[rows_B, start_B + 2] = 0, 1
        logits_BT2 = model(ids_BT)
        loss = F.cross_entropy(logits_BT2[..., 0], start_B) + F.cross_entropy(logits_BT2[..., 1], start_B + 2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.4, "every batch is a new one"
