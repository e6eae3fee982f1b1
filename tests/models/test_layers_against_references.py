"""Layers agree with PyTorch's own modules, or with the formula of the paper in float64, given the same weights.

B batch, T time, D width, H hidden width, S length of the memory, N heads, K key-value heads, A width of one head.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agfl_models.layers.attention import AttentionConfig, AttentionLayer, allowed_pairs, rotate
from agfl_models.layers.causal_conv import CausalConvConfig, CausalConvLayer
from agfl_models.layers.cells import MinGRUCell
from agfl_models.layers.cross_attention import CrossAttentionConfig, CrossAttentionLayer
from agfl_models.layers.feed_forward import FFConfig, FFLayer
from agfl_models.layers.layer import Memory
from agfl_models.layers.recurrent import RNNConfig, RNNLayer
from agfl_models.layers.scan import linear_scan

LENGTHS = [1, 2, 3, 4, 5, 16, 17, 128, 131]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def attention(num_heads: int, num_kv_heads: int, *, window: int | None = None, **flags: Any) -> AttentionLayer:
    config = AttentionConfig(embed_dim=16, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window, **flags)
    return AttentionLayer(config).double()


def torch_attention(layer: AttentionLayer) -> nn.MultiheadAttention:
    reference = nn.MultiheadAttention(16, layer.num_heads, bias=False, batch_first=True).double()
    kv_width = layer.num_kv_heads * layer.head_dim
    query, key, value = torch.split(layer.qkv.weight, [16, kv_width, kv_width])
    copies = layer.num_heads // layer.num_kv_heads
    repeated = [w.view(-1, layer.head_dim, 16).repeat_interleave(copies, 0).flatten(0, 1) for w in (key, value)]
    reference.load_state_dict({"in_proj_weight": torch.cat((query, *repeated)), "out_proj.weight": layer.output.weight})
    return reference


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_is_torch_multihead_attention(causal: bool, num_kv_heads: int, is_masked: bool) -> None:
    layer = attention(4, num_kv_heads, causal=causal, rope=False)
    x_BTD = torch.randn(2, 7, 16, dtype=torch.float64)
    mask_BT = torch.tensor([[1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()
    future_TT = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    want_BTD, _ = torch_attention(layer)(
        x_BTD, x_BTD, x_BTD, attn_mask=future_TT, key_padding_mask=~mask_BT if is_masked else None
    )
    got_BTD = layer(x_BTD, mask_BT if is_masked else None)
    real_BT = mask_BT if is_masked else torch.ones_like(mask_BT)
    torch.testing.assert_close(got_BTD[real_BT], want_BTD[real_BT])


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(3, 3, 10), (6, 2, 4), (1, 1, 6)])
def test_heads_that_do_not_divide_the_width_are_their_formula(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    layer = attention(num_heads, num_kv_heads, head_dim=head_dim, causal=False, rope=False)
    x_TD, group = torch.randn(7, 16, dtype=torch.float64), num_heads // num_kv_heads
    heads_T_A = (x_TD @ layer.qkv.weight.T).view(7, -1, head_dim)
    q_TNA, k_TKA, v_TKA = torch.split(heads_T_A, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    found = []
    for n in range(num_heads):
        scores_TT = q_TNA[:, n] @ k_TKA[:, n // group].T / math.sqrt(head_dim)
        found.append(scores_TT.softmax(dim=-1) @ v_TKA[:, n // group])
    torch.testing.assert_close(layer(x_TD[None])[0], torch.cat(found, dim=-1) @ layer.output.weight.T)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_a_window_is_torch_multihead_attention_in_a_band(causal: bool) -> None:
    layer = attention(4, 2, window=3, causal=causal, rope=False)
    x_BTD = torch.randn(2, 7, 16, dtype=torch.float64)
    band_TT = torch.ones(7, 7, dtype=torch.bool).triu(-2).tril(0 if causal else 2)
    want_BTD, _ = torch_attention(layer)(x_BTD, x_BTD, x_BTD, attn_mask=~band_TT)
    torch.testing.assert_close(layer(x_BTD), want_BTD)


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("is_masked", [False, True])
def test_cross_attention_is_torch_multihead_attention(num_kv_heads: int, is_masked: bool) -> None:
    config = CrossAttentionConfig(cross=True, embed_dim=16, memory_dim=10, num_heads=4, num_kv_heads=num_kv_heads)
    layer = CrossAttentionLayer(config).double()
    reference = nn.MultiheadAttention(16, 4, bias=False, kdim=10, vdim=10, batch_first=True).double()
    key, value = (
        weight.view(-1, 4, 10).repeat_interleave(4 // num_kv_heads, 0).flatten(0, 1)
        for weight in layer.key_value.weight.chunk(2)
    )
    weights = {"q": layer.query.weight, "k": key, "v": value}
    copied = {f"{name}_proj_weight": weight for name, weight in weights.items()}
    reference.load_state_dict({**copied, "out_proj.weight": layer.output.weight})
    x_BTD, states_BSD = torch.randn(2, 7, 16, dtype=torch.float64), torch.randn(2, 5, 10, dtype=torch.float64)
    mask_BS = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 0]]).bool() if is_masked else None
    padding_BS = None if mask_BS is None else ~mask_BS
    want_BTD, _ = reference(x_BTD, states_BSD, states_BSD, key_padding_mask=padding_BS)
    torch.testing.assert_close(layer(x_BTD, None, Memory(states_BSD, mask_BS)), want_BTD)


@pytest.mark.parametrize("window", [None, 1, 2])
def test_every_position_may_look_somewhere(window: int | None) -> None:
    mask_BT = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    for causal in (True, False):
        assert allowed_pairs(mask_BT, causal, window).any(dim=-1).all()


def test_rotary_attention_is_its_formula() -> None:
    layer = attention(4, 2, causal=True, rope=True)
    x_TD = torch.randn(6, 16, dtype=torch.float64)
    q_TNA, k_TKA, v_TKA = (layer.qkv(x_TD).unflatten(-1, (8, 4))).split((4, 2, 2), dim=1)
    turns_TAA = torch.stack([turn_matrix(t, 4) for t in range(6)])
    heads = []
    for n in range(4):
        q_TA = torch.einsum("tab,tb->ta", turns_TAA, q_TNA[:, n])
        k_TA = torch.einsum("tab,tb->ta", turns_TAA, k_TKA[:, n // 2])
        scores_TT = (q_TA @ k_TA.T / math.sqrt(4)).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        heads.append(scores_TT.softmax(-1) @ v_TKA[:, n // 2])
    want_TD = layer.output(torch.cat(heads, dim=-1))
    # The rotation's angles are float32.
    torch.testing.assert_close(layer(x_TD.unsqueeze(0))[0], want_TD, atol=1e-6, rtol=1e-6)


def turn_matrix(position: int, width: int) -> Tensor:
    """Equation 15 of RoFormer."""
    blocks = []
    for pair in range(width // 2):
        angle = position * 10_000.0 ** (-2 * pair / width)
        cos, sin = math.cos(angle), math.sin(angle)
        blocks.append(torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64))
    turn_AA: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return turn_AA


def test_rotated_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8).unbind(0)
    products = [(rotate(q, torch.tensor([m])) * rotate(k, torch.tensor([m - 3]))).sum() for m in (3, 10, 500)]
    torch.testing.assert_close(products[1], products[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(products[2], products[0], atol=1e-4, rtol=1e-4)
    assert not torch.isclose(products[0], (q * k).sum())


@pytest.mark.parametrize(("cell", "module"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_layer_is_torch_module(cell: Any, module: type[nn.GRU] | type[nn.LSTM]) -> None:
    layer = RNNLayer(RNNConfig(input_dim=6, hidden_dim=5, cell=cell))
    reference = module(6, 5, batch_first=True)
    reference.load_state_dict({name.removeprefix("cell.rnn."): w for name, w in layer.state_dict().items()})
    x_BTD, lengths = torch.randn(3, 8, 6), torch.tensor([8, 3, 5])
    torch.testing.assert_close(layer(x_BTD), reference(x_BTD)[0])

    packed = nn.utils.rnn.pack_padded_sequence(x_BTD, lengths, batch_first=True, enforce_sorted=False)
    want_BTH, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    mask_BT = torch.arange(8) < lengths[:, None]
    torch.testing.assert_close(layer(x_BTD, mask_BT)[mask_BT], want_BTH[mask_BT])


@pytest.mark.parametrize(("cell", "module"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_layer_both_ways_is_torch_module(cell: Any, module: type[nn.GRU] | type[nn.LSTM]) -> None:
    layer = RNNLayer(RNNConfig(input_dim=6, hidden_dim=5, cell=cell, bidirectional=True))
    reference = module(6, 5, batch_first=True, bidirectional=True)
    names = {name: name.removeprefix("cell.rnn.") for name in layer.state_dict() if name.startswith("cell.")}
    names |= {f"backward_{name}": f"{copied}_reverse" for name, copied in names.items()}
    reference.load_state_dict({names[name]: weight for name, weight in layer.state_dict().items()})
    x_BTD, lengths = torch.randn(3, 8, 6), torch.tensor([8, 3, 5])
    torch.testing.assert_close(layer(x_BTD), reference(x_BTD)[0])

    packed = nn.utils.rnn.pack_padded_sequence(x_BTD, lengths, batch_first=True, enforce_sorted=False)
    want_BTH, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    mask_BT = torch.arange(8) < lengths[:, None]
    torch.testing.assert_close(layer(x_BTD, mask_BT)[mask_BT], want_BTH[mask_BT])


@pytest.mark.parametrize("length", LENGTHS)
def test_mingru_is_the_sequential_recurrence_in_float64(length: int) -> None:
    cell = MinGRUCell(6, 5)
    nn.init.normal_(cell.gate.bias)
    nn.init.normal_(cell.value.bias)
    x_BTD = torch.randn(2, length, 6)
    cell = cell.double()
    z_BTH, value_BTH = torch.sigmoid(cell.gate(x_BTD.double())), cell.value(x_BTD.double())
    h_BH, states = torch.zeros(2, 5, dtype=torch.float64), []
    for t in range(length):
        h_BH = (1 - z_BTH[:, t]) * h_BH + z_BTH[:, t] * value_BTH[:, t]
        states.append(h_BH)
    want_BTH = torch.stack(states, dim=1)
    torch.testing.assert_close(cell(x_BTD.double(), None), want_BTH, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(cell.float()(x_BTD, None), want_BTH.float(), atol=1e-5, rtol=1e-5)


def test_slow_mingru_gates_stay_exact_in_bfloat16() -> None:
    cell = MinGRUCell(6, 5).bfloat16()
    nn.init.constant_(cell.gate.bias, -6.0)  # z is about 0.002, which 1 - z would lose in bfloat16
    x_BTD = torch.randn(2, 500, 6).bfloat16()
    got_BTH = cell(x_BTD, None)
    want_BTH = cell.double()(x_BTD.double(), None)
    assert (got_BTH - want_BTH).norm() < 0.005 * want_BTH.norm()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 9])
def test_scan_has_the_gradient_of_the_recurrence(length: int) -> None:
    a_BTH = torch.rand(2, length, 2, dtype=torch.float64, requires_grad=True)
    b_BTH = torch.randn(2, length, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a_BTH, b_BTH))


def test_scan_leaves_its_arguments_alone_and_keeps_a_constant_forever() -> None:
    a_BTH, b_BTH = torch.ones(1, 1000, 1), torch.zeros(1, 1000, 1)
    b_BTH[:, 0] = 1
    assert torch.equal(linear_scan(a_BTH, b_BTH), torch.ones(1, 1000, 1))
    assert a_BTH.sum() == 1000
    assert b_BTH.sum() == 1


def test_swiglu_and_gelu_are_their_formulas() -> None:
    x_BTD = torch.randn(2, 3, 6)
    layer = FFLayer(FFConfig(input_dim=6, hidden_dim=8, output_dim=5))
    assert layer.value is not None
    hidden = F.silu(x_BTD @ layer.expand.weight.T) * (x_BTD @ layer.value.weight.T)
    want = hidden @ layer.output.weight.T
    torch.testing.assert_close(layer(x_BTD), want)

    layer = FFLayer(FFConfig(input_dim=6, hidden_dim=8, output_dim=5, activation="gelu"))
    want = F.gelu(x_BTD @ layer.expand.weight.T) @ layer.output.weight.T
    torch.testing.assert_close(layer(x_BTD), want)


@pytest.mark.parametrize("size", [2, 5])
def test_causal_conv_is_torch_conv1d_between_its_gates(size: int) -> None:
    layer = CausalConvLayer(CausalConvConfig(input_dim=8, hidden_dim=6, kernel_size=size))
    x_BTD = torch.randn(2, 9, 8)
    a_BTH, b_BTH, gate_BTH = (x_BTD @ part_HD.T for part_HD in torch.split(layer.expand.weight, 6))
    u_BHT = F.pad((a_BTH * b_BTH).transpose(1, 2), (size - 1, 0))
    want_BTH = F.conv1d(u_BHT, layer.filter_HK.unsqueeze(1), groups=6).transpose(1, 2)
    torch.testing.assert_close(layer(x_BTD), (gate_BTH * want_BTH) @ layer.output.weight.T, atol=1e-5, rtol=1e-5)
