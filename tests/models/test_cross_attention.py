"""Cross-attention and its memory: what is padded or missing there, and what a state keeps of it.

B batch, T time, S length of the memory, D width.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agfl_models.layers.cross_attention import CrossAttentionConfig, CrossAttentionLayer, allowed_keys
from agfl_models.layers.layer import Memory

WIDTH, MEMORY_WIDTH = 16, 12


def make_layer() -> CrossAttentionLayer:
    torch.manual_seed(0)
    return CrossAttentionLayer(
        CrossAttentionConfig(cross=True, embed_dim=WIDTH, memory_dim=MEMORY_WIDTH, num_heads=4, num_kv_heads=2)
    )


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3))
def test_padding_of_the_memory_is_as_if_it_were_not_there(rows: list[list[bool]]) -> None:
    layer, mask_BS = make_layer(), torch.tensor(rows)
    x_BTD, states_BSD = torch.randn(len(rows), 4, WIDTH), torch.randn(len(rows), 6, MEMORY_WIDTH)
    states_BSD[~mask_BS] = 1e3
    y_BTD = layer(x_BTD, None, Memory(states_BSD, mask_BS))
    for x_TD, states_SD, mask_S, y_TD in zip(x_BTD, states_BSD, mask_BS, y_BTD, strict=True):
        if mask_S.any():
            alone_TD = layer(x_TD[None], None, Memory(states_SD[mask_S][None]))[0]
            torch.testing.assert_close(y_TD, alone_TD, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(y_TD, torch.zeros_like(y_TD)), "a memory without a real position says nothing"


def test_every_row_may_look_somewhere_and_at_real_positions_only() -> None:
    mask_BS = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    assert allowed_keys(mask_BS).tolist() == [[[[False, False, True, False]]], [[[True] * 4]]]


def test_an_empty_memory_has_finite_gradients() -> None:
    layer = make_layer()
    x_BTD, states_BSD = torch.randn(2, 4, WIDTH), torch.randn(2, 6, MEMORY_WIDTH, requires_grad=True)
    mask_BS = torch.tensor([[False] * 6, [True] * 6])
    layer(x_BTD, None, Memory(states_BSD, mask_BS)).square().mean().backward()
    assert states_BSD.grad is not None
    assert states_BSD.grad.isfinite().all()
    assert not states_BSD.grad[0].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_mask_of_real_positions_is_no_mask() -> None:
    layer = make_layer()
    x_BTD, states_BSD = torch.randn(2, 4, WIDTH), torch.randn(2, 6, MEMORY_WIDTH)
    everything_BS = torch.ones(2, 6, dtype=torch.bool)
    assert torch.equal(layer(x_BTD, None, Memory(states_BSD)), layer(x_BTD, None, Memory(states_BSD, everything_BS)))


def test_the_order_of_the_memory_does_not_matter() -> None:
    layer, order = make_layer(), torch.tensor([4, 0, 5, 2, 1, 3])
    x_BTD, states_BSD = torch.randn(2, 4, WIDTH), torch.randn(2, 6, MEMORY_WIDTH)
    turned_BTD = layer(x_BTD, None, Memory(states_BSD[:, order]))
    torch.testing.assert_close(turned_BTD, layer(x_BTD, None, Memory(states_BSD)), atol=1e-5, rtol=1e-5)


def test_the_state_is_made_once_and_follows_its_row() -> None:
    layer, beams = make_layer(), torch.tensor([1, 1, 0])
    states_BSD, mask_BS = torch.randn(2, 6, MEMORY_WIDTH), torch.rand(2, 6) < 0.5
    state = layer.initial_state(2, Memory(states_BSD, mask_BS))
    assert all(len(part) == 2 for part in state)
    x_BD = torch.randn(3, WIDTH)
    y_BD, after = layer.step(x_BD, tuple(part.index_select(0, beams) for part in state))
    want_BTD = layer(x_BD.unsqueeze(1), None, Memory(states_BSD[beams], mask_BS[beams]))
    torch.testing.assert_close(y_BD, want_BTD.squeeze(1))
    assert all(torch.equal(part, before[beams]) for part, before in zip(after, state, strict=True))
