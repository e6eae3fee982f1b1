"""Laws that every layer type obeys: causality, decoding step by step, padding, precision, size.

B batch, T time, D width of the input.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from agfl_models.errors import ConfigError
from agfl_models.layers import LayerConfig, build
from agfl_models.layers.layer import Layer, Memory, State

WIDTH = 16
MEMORY_WIDTH = 12
CAUSAL_LAYERS: dict[str, dict[str, Any]] = {
    "ff": {"type": "ff"},
    "ff gelu": {"type": "ff", "activation": "gelu", "hidden_dim": 20},
    "ff widening": {"type": "ff", "output_dim": 24},
    "gru": {"type": "rnn"},
    "gru projected": {"type": "rnn", "hidden_dim": 12, "output_dim": 20},
    "lstm": {"type": "rnn", "cell": "lstm"},
    "lstm projected": {"type": "rnn", "cell": "lstm", "hidden_dim": 12, "output_dim": 20},
    "mingru": {"type": "rnn", "cell": "mingru"},
    "mingru projected": {"type": "rnn", "cell": "mingru", "hidden_dim": 12, "output_dim": 20},
    "gated delta": {"type": "rnn", "cell": "gated_delta"},
    "gated delta projected": {"type": "rnn", "cell": "gated_delta", "hidden_dim": 64, "output_dim": 20},
    "causal conv": {"type": "causal_conv"},
    "causal conv of other sizes": {"type": "causal_conv", "hidden_dim": 12, "output_dim": 20, "kernel_size": 7},
    "attention": {"type": "attention", "num_heads": 2},
    "attention grouped": {"type": "attention", "num_heads": 4, "num_kv_heads": 2},
    "attention multi-query": {"type": "attention", "num_heads": 4, "num_kv_heads": 1},
    "attention wider than its input": {"type": "attention", "num_heads": 6, "num_kv_heads": 2, "head_dim": 4},
    "attention unrotated": {"type": "attention", "num_heads": 2, "rope": False},
    "attention in a window": {"type": "attention", "num_heads": 2, "window": 3},
    "attention to itself": {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "window": 1},
    "cross-attention": {"type": "attention", "cross": True, "num_heads": 4},
    "cross-attention grouped": {"type": "attention", "cross": True, "num_heads": 4, "num_kv_heads": 2},
    "cross-attention narrower than its input": {"type": "attention", "cross": True, "num_heads": 3, "head_dim": 3},
}
BOTH_WAYS: dict[str, dict[str, Any]] = {
    "attention both ways": {"type": "attention", "num_heads": 4, "causal": False},
    "attention in a window both ways": {"type": "attention", "num_heads": 2, "causal": False, "window": 2},
    "gru both ways": {"type": "rnn", "bidirectional": True},
    "lstm both ways": {"type": "rnn", "cell": "lstm", "bidirectional": True, "hidden_dim": 12},
    "gated delta both ways": {"type": "rnn", "cell": "gated_delta", "bidirectional": True, "output_dim": 20},
    "mingru both ways": {"type": "rnn", "cell": "mingru", "bidirectional": True, "hidden_dim": 12, "output_dim": 20},
}
LAYERS = CAUSAL_LAYERS | BOTH_WAYS
each_causal_layer = pytest.mark.parametrize("config", CAUSAL_LAYERS.values(), ids=CAUSAL_LAYERS.keys())
each_layer_both_ways = pytest.mark.parametrize("config", BOTH_WAYS.values(), ids=BOTH_WAYS.keys())
each_layer = pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS.keys())


@each_layer
def test_a_layer_says_what_it_lets_through(config: dict[str, Any]) -> None:
    """Causal: nothing of a later position; a mixer: something of another one, which one to itself alone does not."""
    layer, resolved = make_layer(config), resolve(config)
    x_BTD = torch.randn(2, 9, WIDTH)

    def moves(seen: int, looking: int) -> bool:
        changed_BTD = x_BTD.clone()
        changed_BTD[:, seen] = torch.randn(2, WIDTH)
        before, after = (layer(x, None, memory(2))[:, looking] for x in (x_BTD, changed_BTD))
        return not torch.allclose(before, after, atol=1e-6)

    assert resolved.is_causal != moves(5, 4)
    assert (resolved.is_mixer and config.get("window") != 1) == moves(3, 4)


def make_layer(config: dict[str, Any]) -> Layer:
    torch.manual_seed(0)
    layer = build(resolve(config))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # no bias stays 0, where it would hide an error
    return layer


def resolve(config: dict[str, Any]) -> LayerConfig:
    layer_config: LayerConfig = TypeAdapter(LayerConfig).validate_python(config)
    return layer_config.in_stack(causal=True, memory_dim=MEMORY_WIDTH).resolved(WIDTH, False, "layer")


def memory(rows: int, first: int = 0, dtype: torch.dtype = torch.float32) -> Memory:
    """What an encoder read, for the layers that look at it: the same at every call."""
    generator = torch.Generator().manual_seed(2)
    states_BSD = torch.randn(3, 6, MEMORY_WIDTH, generator=generator).to(dtype)
    mask_BS = torch.rand(3, 6, generator=generator) < 0.7
    return Memory(states_BSD[first : first + rows], mask_BS[first : first + rows])


@each_causal_layer
@pytest.mark.parametrize("is_masked", [False, True])
def test_what_comes_later_changes_nothing_before(config: dict[str, Any], is_masked: bool) -> None:
    layer = make_layer(config)
    x_BTD = torch.randn(2, 9, WIDTH)
    mask_BT = torch.rand(2, 9) < 0.7 if is_masked else None
    y_BTE = layer(x_BTD, mask_BT, memory(2))
    for t in range(8):
        changed_BTD = x_BTD.clone()
        changed_BTD[:, t + 1 :] = torch.randn(2, 8 - t, WIDTH)
        changed_mask_BT = None
        if mask_BT is not None:
            changed_mask_BT = mask_BT.clone()
            changed_mask_BT[:, t + 1 :] = torch.rand(2, 8 - t) < 0.7
        y_changed_BTE = layer(changed_BTD, changed_mask_BT, memory(2))
        torch.testing.assert_close(y_changed_BTE[:, : t + 1], y_BTE[:, : t + 1], atol=1e-6, rtol=1e-6)
        assert is_masked or not torch.allclose(y_changed_BTE[:, t + 1], y_BTE[:, t + 1])


@each_layer_both_ways
def test_a_layer_both_ways_sees_what_comes_before_and_later(config: dict[str, Any]) -> None:
    layer = make_layer(config)
    x_BTD = torch.randn(2, 9, WIDTH)
    for seen, looking in ((3, 4), (5, 4)):
        changed_BTD = x_BTD.clone()
        changed_BTD[:, seen] = torch.randn(2, WIDTH)
        assert not torch.allclose(layer(x_BTD)[:, looking], layer(changed_BTD)[:, looking])


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_ends_where_it_says(causal: bool) -> None:
    layer = make_layer({"type": "attention", "num_heads": 2, "causal": causal, "window": 3})
    x_BTD = torch.randn(1, 9, WIDTH)
    for seen in range(9):
        changed_BTD = x_BTD.clone()
        changed_BTD[:, seen] = torch.randn(1, WIDTH)
        changed_T = (layer(x_BTD) - layer(changed_BTD)).abs().sum(dim=(0, 2)) > 1e-5
        distances_T = torch.arange(9) - seen
        within_T = distances_T.abs() < 3
        assert torch.equal(changed_T, within_T & (distances_T >= 0) if causal else within_T)


def test_the_state_of_a_window_stays_within_it() -> None:
    layer = make_layer({"type": "attention", "num_heads": 2, "window": 3})
    state = layer.initial_state(2)
    for _ in range(9):
        _, state = layer.step(torch.randn(2, WIDTH), state)
        assert all(part.shape[1] <= 3 for part in state[:2])


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_as_long_as_the_sequence_changes_nothing(causal: bool) -> None:
    config = {"type": "attention", "num_heads": 2, "causal": causal}
    x_BTD, mask_BT = torch.randn(2, 7, WIDTH), torch.rand(2, 7) < 0.6
    for mask in (None, mask_BT):
        want_BTD = make_layer(config)(x_BTD, mask)
        torch.testing.assert_close(make_layer({**config, "window": 7})(x_BTD, mask), want_BTD, atol=1e-6, rtol=1e-6)


@each_causal_layer
def test_step_by_step_is_the_whole_sequence(config: dict[str, Any]) -> None:
    layer = make_layer(config)
    x_BTD = torch.randn(3, 11, WIDTH)
    torch.testing.assert_close(decode(layer, x_BTD), layer(x_BTD, None, memory(3)), atol=1e-5, rtol=1e-5)


@each_causal_layer
@pytest.mark.parametrize("block", [3, 128])
def test_several_steps_at_once_are_as_many_steps(
    config: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agfl_models.layers.attention.BLOCK", block)
    layer, x_BTD = make_layer(config), torch.randn(3, 17, WIDTH)
    state, outputs = layer.initial_state(3, memory(3)), []
    for part_BTD in torch.split(x_BTD, [7, 1, 5, 4], dim=1):
        copies = tuple(part.clone() for part in state)
        y_BTE, after = layer.steps(part_BTD, state)
        assert all(torch.equal(part, copy) for part, copy in zip(state, copies, strict=True))
        outputs.append(y_BTE)
        state = after
    torch.testing.assert_close(torch.cat(outputs, dim=1), decode(layer, x_BTD), atol=1e-5, rtol=1e-5)
    _, expected = _decoded(layer, x_BTD)
    for part, same in zip(state, expected, strict=True):
        torch.testing.assert_close(part, same, atol=1e-5, rtol=1e-5)


def decode(layer: Layer, x_BTD: Tensor) -> Tensor:
    return _decoded(layer, x_BTD)[0]


def _decoded(layer: Layer, x_BTD: Tensor) -> tuple[Tensor, State]:
    state = layer.initial_state(len(x_BTD), memory(len(x_BTD)))
    outputs = []
    for x_BD in x_BTD.unbind(dim=1):
        y_BE, state = layer.step(x_BD, state)
        outputs.append(y_BE)
    return torch.stack(outputs, dim=1), state


@each_causal_layer
def test_a_step_leaves_the_given_state_alone_and_rows_can_be_reordered(config: dict[str, Any]) -> None:
    layer = make_layer(config)
    beams = torch.tensor([2, 0, 0])
    x_BD = torch.randn(3, WIDTH)
    _, state = layer.step(torch.randn(3, WIDTH), layer.initial_state(3, memory(3)))
    copies = tuple(part.clone() for part in state)
    y_BE, _ = layer.step(x_BD, state)
    for part, copy in zip(state, copies, strict=True):
        assert torch.equal(part, copy)
    y_reordered_BE, _ = layer.step(x_BD[beams], tuple(part[beams] for part in state))
    torch.testing.assert_close(y_reordered_BE, y_BE[beams])


@each_layer
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3))
def test_padding_anywhere_does_not_change_real_positions(config: dict[str, Any], rows: list[list[bool]]) -> None:
    layer = make_layer(config)
    mask_BT = torch.tensor(rows)
    x_BTD = torch.randn(*mask_BT.shape, WIDTH)
    x_BTD[~mask_BT] = 1e3
    y_BTE = layer(x_BTD, mask_BT, memory(len(rows)))
    assert y_BTE.isfinite().all()
    for row, (x_TD, y_TE, mask_T) in enumerate(zip(x_BTD, y_BTE, mask_BT, strict=True)):
        if mask_T.any():
            alone_TE = layer(x_TD[mask_T].unsqueeze(0), None, memory(1, first=row)).squeeze(0)
            torch.testing.assert_close(y_TE[mask_T], alone_TE, atol=1e-4, rtol=1e-4)


@each_layer
@pytest.mark.parametrize("is_masked", [False, True])
def test_bfloat16_gives_finite_gradients_and_nearly_the_same_output(config: dict[str, Any], is_masked: bool) -> None:
    layer = make_layer(config)
    x_BTD = torch.randn(2, 64, WIDTH)
    mask_BT = torch.rand(2, 64) < 0.5 if is_masked else None
    exact_BTE = layer(x_BTD, mask_BT, memory(2)).detach()
    y_BTE = layer.to(torch.bfloat16)(x_BTD.bfloat16(), mask_BT, memory(2, dtype=torch.bfloat16))
    assert y_BTE.dtype == torch.bfloat16
    assert (y_BTE - exact_BTE).norm() < 0.03 * exact_BTE.norm()
    y_BTE.square().mean().backward()
    assert_finite_gradients(layer)


@each_layer
def test_autocast_gives_finite_gradients(config: dict[str, Any]) -> None:
    layer = make_layer(config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(torch.randn(2, 64, WIDTH), None, memory(2)).square().mean()
    loss.backward()
    assert_finite_gradients(layer)


def assert_finite_gradients(layer: Layer) -> None:
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each_layer
def test_the_config_predicts_widths_and_number_of_parameters(config: dict[str, Any]) -> None:
    layer, resolved = make_layer(config), resolve(config)
    assert sum(parameter.numel() for parameter in layer.parameters()) == resolved.num_parameters()
    assert (layer.input_dim, layer.output_dim) == (resolved.width_in, resolved.width_out)
    assert layer(torch.randn(1, 3, WIDTH), None, memory(1)).shape == (1, 3, resolved.width_out)


@pytest.mark.parametrize("cell", ["gru", "lstm", "mingru", "gated_delta"])
def test_both_directions_begin_alike(cell: str) -> None:
    torch.manual_seed(0)
    layer = build(resolve({"type": "rnn", "cell": cell, "hidden_dim": 96, "bidirectional": True}))
    weights = layer.state_dict()
    for name in [name for name in weights if name.startswith("cell.")]:
        there, back = weights[name], weights[f"backward_{name}"]
        torch.testing.assert_close(back.std(), there.std(), atol=1e-6, rtol=0.1)
        torch.testing.assert_close(back.mean(), there.mean(), atol=0.05, rtol=0)
        assert there.dim() == 1 or not torch.equal(there, back)


@each_layer_both_ways
def test_a_layer_both_ways_cannot_decode_step_by_step(config: dict[str, Any]) -> None:
    layer = make_layer(config)
    with pytest.raises(ConfigError, match=r"^(causal: must be true|bidirectional: must be false) to decode step by"):
        layer.step(torch.randn(1, WIDTH), layer.initial_state(1))
