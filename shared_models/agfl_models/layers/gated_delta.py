"""The gated delta rule: a recurrent cell whose state is a matrix, which it writes by key and reads by query.

B batch, T time, D width of the input, H hidden width, N heads, A width of one head; a sequence is cut into M chunks
of C positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.layers.connection import RMSNorm
from agfl_models.layers.layer import Blocks, State, at_least_float32, init_linear, kept_units

LEAST_HEAD_DIM = 32
CHUNK = 32  # the fastest of 16, 32, 64 and 128 on a CPU with heads of 32
UNIT_EPSILON = 1e-6
# Positions after which a head has forgotten 1 - 1/e of its state, at first: the first head the longest.
LONGEST_MEMORY, SHORTEST_MEMORY = 1024.0, 16.0


class GatedDeltaCell(nn.Module):
    """S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T in each head; the output is norm(S_t q_t) * SiLU(x G).

    Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks", arXiv:2412.06464, sections 3.1 and 3.4: forget by a in
    (0, 1), then put v in place of what the state answers to the unit key k, in full if b is 1.

    b is in (0, 2), so the state's factor along k, a (1 - b), is in (-1, 1). A negative factor can count modulo 2,
    hence learn parity, which no recurrence with positive factors does, minGRU among them (Grazzi et al. 2024,
    arXiv:2411.12537, theorem 1).

    We depart in two ways: there is no short convolution, so the state is (S_BNAA,) alone; and a is a sigmoid, which
    is their gate with A = 1. Heads are as many as are at least 32 wide. State and gates are float32 or better.
    """

    def __init__(self, width_in: int, width_hidden: int) -> None:
        super().__init__()
        self.num_heads = count_heads(width_hidden)
        self.head_dim = width_hidden // self.num_heads
        self.qkv = nn.Linear(width_in, 3 * width_hidden, bias=False)
        self.output_gate = nn.Linear(width_in, width_hidden, bias=False)
        self.rates = nn.Linear(width_in, 2 * self.num_heads)
        self.norm = RMSNorm(self.head_dim)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        q_BTNA, k_BTNA, v_BTNA, log_a_BTN, b_BTN = self._project(x_BTD)
        if mask_BT is not None:  # padding neither forgets nor writes
            log_a_BTN, b_BTN = log_a_BTN * mask_BT.unsqueeze(-1), b_BTN * mask_BT.unsqueeze(-1)
        return self._gated(gated_delta_rule(q_BTNA, k_BTNA, v_BTNA, log_a_BTN, b_BTN), x_BTD)

    def initial_state(self, batch_size: int) -> State:
        weight = at_least_float32(self.rates.weight)
        return (weight.new_zeros(batch_size, self.num_heads, self.head_dim, self.head_dim),)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        q_BNA, k_BNA, v_BNA, log_a_BN, b_BN = self._project(x_BD)
        s_BNAA = log_a_BN.exp()[..., None, None] * state[0]
        u_BNA = b_BN.unsqueeze(-1) * (v_BNA - _read(s_BNAA, k_BNA))
        s_BNAA = s_BNAA + u_BNA.unsqueeze(-1) * k_BNA.unsqueeze(-2)
        return self._gated(_read(s_BNAA, q_BNA), x_BD), (s_BNAA,)

    def reset_parameters(self) -> None:
        """Inputs keep their size; b is 1 on average, and every head remembers for another time."""
        for linear in (self.qkv, self.output_gate, self.rates):
            init_linear(linear)
        nn.init.ones_(self.norm.weight)
        log_memory_N = torch.linspace(math.log(LONGEST_MEMORY), math.log(SHORTEST_MEMORY), self.num_heads)
        with torch.no_grad():
            self.rates.bias[: self.num_heads] = log_memory_N  # 1 - sigmoid(log n) is about 1 / n

    def inner_blocks(self) -> dict[str, Blocks]:
        """See `Layer.inner_blocks`; the norm is one for all heads."""
        hidden, heads = self.output_gate.out_features, self.num_heads
        return {
            "qkv.weight": ((hidden, hidden, hidden), ()),
            "output_gate.weight": ((hidden,), ()),
            "rates.weight": ((heads, heads), ()),
            "rates.bias": ((heads, heads),),
        }

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        q, k, v = F.silu(self.qkv(x)).view(*x.shape[:-1], 3, self.num_heads, self.head_dim).unbind(-3)
        a, b = at_least_float32(self.rates(x)).chunk(2, dim=-1)
        return _unit(q), _unit(k), at_least_float32(v), F.logsigmoid(a), 2 * b.sigmoid()

    def _gated(self, o: Tensor, x: Tensor) -> Tensor:
        gate = F.silu(self.output_gate(x))
        y: Tensor = self.norm(o).flatten(-2).type_as(gate) * gate
        return y


def gated_delta_rule(q_BTNA: Tensor, k_BTNA: Tensor, v_BTNA: Tensor, log_a_BTN: Tensor, b_BTN: Tensor) -> Tensor:
    """Return S_t q_t for every t, with S = 0 at first.

    Section 3.3 of the paper: within a chunk that begins with S, and with g_t = a_1 ... a_t counted from there,

        S_t = g_t S + sum_{i <= t} (g_t / g_i) u_i k_i^T
        u_t = b_t (v_t - g_t S k_t - sum_{i < t} (g_t / g_i) (k_i . k_t) u_i).

    The second line is a triangular system for u. It is solved for all chunks at once, as u = own - of_state S^T, and
    then S goes from chunk to chunk. A quotient of g is the exponential of a difference, so that none overflows.
    """
    chunk = min(CHUNK, q_BTNA.shape[1])
    q, k, v, log_a, b = (_chunked(x, chunk) for x in (q_BTNA, k_BTNA, v_BTNA, log_a_BTN[..., None], b_BTN[..., None]))
    with torch.autocast(q.device.type, enabled=False):
        log_g = log_a.cumsum(dim=-2)
        future_CC = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
        quotients_CC = (log_g - log_g.mT).masked_fill(future_CC, -torch.inf).exp()
        system_CC = (b * quotients_CC * (k @ k.mT)).tril(-1)  # the diagonal, all ones, is implied
        targets = torch.cat((b * v, b * log_g.exp() * k), dim=-1)
        own, of_state = torch.linalg.solve_triangular(system_CC, targets, upper=False, unitriangular=True).chunk(2, -1)
        within_CC, from_state = quotients_CC * (q @ k.mT), log_g.exp() * q
        to_end, all_of_a = (log_g[..., -1:, :] - log_g).exp() * k, log_g[..., -1:, :].exp()
        outputs, s_T_BNAA = [], torch.zeros_like(k[0].mT @ v[0])
        for m in range(len(q)):
            u = own[m] - of_state[m] @ s_T_BNAA
            outputs.append(from_state[m] @ s_T_BNAA + within_CC[m] @ u)
            s_T_BNAA = all_of_a[m] * s_T_BNAA + to_end[m].mT @ u
    return torch.cat(outputs, dim=2).transpose(1, 2)[:, : q_BTNA.shape[1]]


def count_heads(width_hidden: int) -> int:
    """Return the most heads of equal width that are at least `LEAST_HEAD_DIM` wide; 1 if none are."""
    most = max(1, width_hidden // LEAST_HEAD_DIM)
    return next(n for n in range(most, 0, -1) if width_hidden % n == 0)


def narrowed_hidden(width: float, width_hidden: int, name: str) -> int:
    """Return the hidden width of the first heads; raises ConfigError where that is not as many heads on its own."""
    heads = count_heads(width_hidden)
    kept = kept_units(width, heads)
    narrow = width_hidden // heads * kept
    if count_heads(narrow) != kept:
        rule = f"narrowed to {narrow}, must be {kept} heads of {width_hidden // heads}"
        raise ConfigError("AGFL-CONFIG-091", f"{name}.hidden_dim: {rule}, got {count_heads(narrow)} heads")
    return narrow


def count_weights(width_in: int, width_hidden: int) -> int:
    """Return the number of weights in the cell's matrices."""
    return width_in * (4 * width_hidden + 2 * count_heads(width_hidden))


def count_other_parameters(width_hidden: int) -> int:
    """Return the number of biases and of the norm's parameters."""
    heads = count_heads(width_hidden)
    return 2 * heads + width_hidden // heads


def state_flops(width_hidden: int) -> int:
    """Return the operations of one step's products with the state: two reads and a write."""
    return 6 * width_hidden * width_hidden // count_heads(width_hidden)


def _read(s_BNAA: Tensor, key_BNA: Tensor) -> Tensor:
    return (s_BNAA * key_BNA.unsqueeze(-2)).sum(dim=-1)  # not a matmul, which autocast would round


def _unit(x: Tensor) -> Tensor:
    # Never longer than 1, so that no step can make the state grow.
    x = at_least_float32(x)
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + UNIT_EPSILON)


def _chunked(x_BTNA: Tensor, chunk: int) -> Tensor:
    # (M, B, N, C, A); the zeros that fill the last chunk neither forget nor write.
    filled = F.pad(x_BTNA, (0, 0, 0, 0, 0, -x_BTNA.shape[1] % chunk))
    return filled.reshape(len(filled), -1, chunk, *filled.shape[2:]).permute(1, 0, 3, 2, 4)
