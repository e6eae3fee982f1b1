"""The gated delta rule in chunks is its recurrence, position by position in float64; and it learns to count modulo 2.

B batch, T time, D width of the input, H hidden width, N heads, A width of one head.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agfl_models.layers.gated_delta import CHUNK, GatedDeltaCell, gated_delta_rule
from agfl_models.layers.recurrent import RNNConfig, RNNLayer

LENGTHS = [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5]
WIDTH, HIDDEN, HEADS = 6, 64, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_cell() -> GatedDeltaCell:
    cell = GatedDeltaCell(WIDTH, HIDDEN)
    cell.reset_parameters()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        cell.rates.bias[:HEADS] = torch.tensor([5.0, 0.5])  # one head remembers long, one forgets at once
    return cell


def recurrence(q_TNA: Tensor, k_TNA: Tensor, v_TNA: Tensor, a_TN: Tensor, b_TN: Tensor) -> Tensor:
    """The formula of the paper, section 3.1, as it stands there."""
    length, heads, width = q_TNA.shape
    eye_AA = torch.eye(width, dtype=q_TNA.dtype)
    outputs = []
    for n in range(heads):
        s_AA = torch.zeros(width, width, dtype=q_TNA.dtype)
        for t in range(length):
            k_A, v_A, a, b = k_TNA[t, n], v_TNA[t, n], a_TN[t, n], b_TN[t, n]
            s_AA = a * s_AA @ (eye_AA - b * torch.outer(k_A, k_A)) + b * torch.outer(v_A, k_A)
            outputs.append(s_AA @ q_TNA[t, n])
    return torch.stack(outputs).view(heads, length, width).transpose(0, 1)


def expected(cell: GatedDeltaCell, x_BTD: Tensor) -> Tensor:
    """The whole cell in plain terms."""
    rows = []
    for x_TD in x_BTD:
        q_TNA, k_TNA, v_TNA = (F.silu(x_TD @ w.T).view(len(x_TD), HEADS, -1) for w in cell.qkv.weight.chunk(3))
        q_TNA, k_TNA = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q_TNA, k_TNA))
        a_TN, b_TN = (x_TD @ cell.rates.weight.T + cell.rates.bias).sigmoid().chunk(2, dim=-1)
        o_TNA = recurrence(q_TNA, k_TNA, v_TNA, a_TN, 2 * b_TN)
        o_TNA = o_TNA / (o_TNA.square().mean(-1, keepdim=True) + 1e-5).sqrt() * cell.norm.weight
        rows.append(o_TNA.flatten(-2) * F.silu(x_TD @ cell.output_gate.weight.T))
    return torch.stack(rows)


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_are_the_recurrence_in_float64(length: int) -> None:
    cell = make_cell()
    x_BTD = torch.randn(2, length, WIDTH)
    want_BTH = expected(cell.double(), x_BTD.double())
    torch.testing.assert_close(cell(x_BTD.double(), None), want_BTH, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(cell.float()(x_BTD, None), want_BTH.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_steps_are_chunks_of_any_number(length: int) -> None:
    cell = make_cell()
    x_BTD = torch.randn(3, length, WIDTH)
    state, outputs = cell.initial_state(3), []
    for x_BD in x_BTD.unbind(1):
        y_BH, state = cell.step(x_BD, state)
        outputs.append(y_BH)
    torch.testing.assert_close(torch.stack(outputs, dim=1), cell(x_BTD, None), atol=1e-4, rtol=1e-4)


def test_padding_across_chunks_leaves_the_state_alone() -> None:
    cell = make_cell()
    x_BTD, mask_BT = torch.randn(3, 4 * CHUNK, WIDTH), torch.rand(3, 4 * CHUNK) < 0.5
    mask_BT[0, :CHUNK] = False
    mask_BT[1, CHUNK : 3 * CHUNK] = False
    y_BTH = cell(x_BTD, mask_BT)
    for x_TD, y_TH, mask_T in zip(x_BTD, y_BTH, mask_BT, strict=True):
        alone_TH = cell(x_TD[mask_T].unsqueeze(0), None)[0]
        torch.testing.assert_close(y_TH[mask_T], alone_TH, atol=1e-4, rtol=1e-4)


def test_chunks_have_the_gradient_of_the_recurrence() -> None:
    length = CHUNK + 3
    shapes = [(1, length, 2, 4)] * 3 + [(1, length, 2)] * 2
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def inputs() -> tuple[Tensor, ...]:
        q, k, v, a, b = leaves
        return q, F.normalize(k, dim=-1), v, F.logsigmoid(a), 2 * b.sigmoid()

    weights = torch.randn(1, length, 2, 4, dtype=torch.float64)
    got = torch.autograd.grad((gated_delta_rule(*inputs()) * weights).sum(), leaves)
    q, k, v, log_a, b = (z[0] for z in inputs())
    want = torch.autograd.grad((recurrence(q, k, v, log_a.exp(), b) * weights[0]).sum(), leaves)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("b", [1.0, 2.0])
def test_the_same_key_again_and_again_keeps_the_state_exact(b: float) -> None:
    k_BTNA = F.normalize(torch.ones(1, 1000, 1, 8) + 0.01 * torch.randn(1, 1000, 1, 8), dim=-1)
    v_BTNA, b_BTN = torch.randn(1, 1000, 1, 8), torch.full((1, 1000, 1), b)
    got_BTNA = gated_delta_rule(k_BTNA, k_BTNA, v_BTNA, torch.zeros(1, 1000, 1), b_BTN)
    exact = (k_BTNA[0].double(), k_BTNA[0].double(), v_BTNA[0].double())
    want_TNA = recurrence(*exact, torch.ones(1000, 1).double(), b_BTN[0].double())
    assert (got_BTNA[0] - want_TNA).norm() < 1e-3 * want_TNA.norm()


def test_a_gate_that_closes_at_once_is_no_division_by_zero() -> None:
    log_a_BTN = torch.full((1, 100, 1), -50.0, requires_grad=True)  # exp(-50 * 32) is 0
    q, k, v = torch.randn(3, 1, 100, 1, 8).unbind(0)
    output = gated_delta_rule(q, F.normalize(k, dim=-1), v, log_a_BTN, torch.ones(1, 100, 1))
    output.sum().backward()  # type: ignore[no-untyped-call]
    assert output.isfinite().all()
    assert log_a_BTN.grad is not None
    assert log_a_BTN.grad.isfinite().all()


def test_parity_is_learned_unlike_by_positive_factors() -> None:
    assert parity_accuracy("gated_delta") > 0.9
    assert parity_accuracy("mingru") < 0.7


def parity_accuracy(cell: Any) -> float:
    """Train on the parity of the bits so far, for 16 random bits; return the accuracy after that."""
    layer, read_out = RNNLayer(RNNConfig(input_dim=2, hidden_dim=32, cell=cell)), nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*layer.parameters(), *read_out.parameters()], lr=0.01)
    for _ in range(300):
        bits_BT = torch.randint(2, (64, 16))
        parity_BT = bits_BT.cumsum(dim=1) % 2
        logits_BTV = read_out(layer(F.one_hot(bits_BT, 2).float()))
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), parity_BT.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float((logits_BTV.argmax(-1) == parity_BT).float().mean())
