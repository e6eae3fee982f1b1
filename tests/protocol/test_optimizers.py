"""Each server optimizer takes the steps that its paper says, against oracles written from the papers.

Notation of Reddi et al. 2021: x model, D mean delta, m first and v second moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from agfl_protocol.methods.square_norm import SQUARE_NORM
from agfl_protocol.optimizers import ServerOptimizerConfig, build_optimizer
from agfl_protocol.optimizers.server_optimizer import ServerOptimizer
from agfl_protocol.update import Mean

SIZE, STEPS = 13, 20
Deltas = list[list[float]]
Oracle = Callable[[list[float], Deltas], Iterator[list[float]]]


def optimizer(**config: object) -> ServerOptimizer:
    return build_optimizer(TypeAdapter(ServerOptimizerConfig).validate_python(config))


def fedavg(x: list[float], deltas: Deltas) -> Iterator[list[float]]:
    """McMahan et al. 2017, Algorithm 1, with a server step of 0.5."""
    for delta in deltas:
        x = [xi + 0.5 * di for xi, di in zip(x, delta, strict=True)]
        yield x


def fedavgm(x: list[float], deltas: Deltas) -> Iterator[list[float]]:
    """Hsu et al. 2019, section 4.3: v <- beta v + D, w <- w + eta v (D points downhill already)."""
    v = [0.0] * SIZE
    for delta in deltas:
        v = [0.9 * vi + di for vi, di in zip(v, delta, strict=True)]
        x = [xi + 0.3 * vi for xi, vi in zip(x, v, strict=True)]
        yield x


def nesterov(x: list[float], deltas: Deltas) -> Iterator[list[float]]:
    """DiLoCo, Douillard et al. 2023: torch's SGD with Nesterov momentum on -D."""
    parameter = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for delta in deltas:
        parameter.grad = -torch.tensor(delta, dtype=torch.float64)
        sgd.step()
        yield parameter.detach().tolist()


def adaptive(second_moment: Callable[[float, float], float]) -> Oracle:
    """Reddi et al. 2021, Algorithm 2, with eta 0.05, beta_1 0.8, tau 0.01; v_{-1} = tau^2."""

    def steps(x: list[float], deltas: Deltas) -> Iterator[list[float]]:
        m, v = [0.0] * SIZE, [0.01**2] * SIZE
        for delta in deltas:
            m = [0.8 * mi + (1 - 0.8) * di for mi, di in zip(m, delta, strict=True)]
            v = [second_moment(vi, di) for vi, di in zip(v, delta, strict=True)]
            x = [xi + 0.05 * mi / (math.sqrt(vi) + 0.01) for xi, mi, vi in zip(x, m, v, strict=True)]
            yield x

    return steps


def fedexp(x: list[float], deltas: Deltas) -> Iterator[list[float]]:
    """Jhunjhunwala et al. 2023, equation 5, over the three clients of `clients_of`, epsilon 0.1; never above 5."""
    for delta in deltas:
        clients = clients_of(np.array(delta))
        mean = [sum(client[j] for client in clients) / 3 for j in range(SIZE)]
        squares = sum(sum(value**2 for value in client) for client in clients) / 3
        eta = min(5.0, max(1.0, squares / (2 * (sum(value**2 for value in mean) + 0.1))))
        x = [xi + eta * di for xi, di in zip(x, mean, strict=True)]
        yield x


def clients_of(mean: NDArray[Any]) -> list[NDArray[Any]]:
    """Three clients whose mean it is; how far they differ goes up and down with its second element."""
    spread = 5 * np.sin(20 * mean[1]) * np.arange(SIZE) / SIZE
    return [mean + spread, mean - spread, mean]


def mean_of(delta: NDArray[Any]) -> Mean:
    """What the server learns of them."""
    squares = sum(float(np.square(client, dtype=float).sum()) for client in clients_of(delta.astype(float))) / 3
    return Mean(delta, 3, {SQUARE_NORM: squares})


def yogi(v: float, d: float) -> float:
    return v - (1 - 0.95) * d**2 * float(np.sign(v - d**2))


ADAPTIVE = {"lr": 0.05, "beta1": 0.8, "tau": 0.01}
METHODS: list[tuple[dict[str, object], Oracle]] = [
    ({"type": "fedavg", "lr": 0.5}, fedavg),
    ({"type": "fedavgm", "lr": 0.3, "momentum": 0.9}, fedavgm),
    ({"type": "nesterov", "lr": 0.7, "momentum": 0.9}, nesterov),
    ({"type": "fedadagrad", **ADAPTIVE}, adaptive(lambda v, d: v + d**2)),
    ({"type": "fedadam", **ADAPTIVE, "beta2": 0.95}, adaptive(lambda v, d: 0.95 * v + (1 - 0.95) * d**2)),
    ({"type": "fedyogi", **ADAPTIVE, "beta2": 0.95}, adaptive(yogi)),
    ({"type": "fedexp", "epsilon": 0.1}, fedexp),
]
all_methods = pytest.mark.parametrize(("config", "oracle"), METHODS, ids=[str(c["type"]) for c, _ in METHODS])


def draws() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(3)
    scales = 10.0 ** rng.uniform(-4, 0, (STEPS, 1))
    deltas = rng.standard_normal((STEPS, SIZE)) * scales
    deltas[:, 0] = 0.0  # an element that never moves
    # Numbers that float32 holds exactly, so that both precisions see the same problem.
    return rng.standard_normal(SIZE).astype(np.float32).astype(float), deltas.astype(np.float32).astype(float)


@all_methods
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_steps_are_those_of_the_paper(
    config: dict[str, object], oracle: Oracle, dtype: type[np.floating], tolerance: float
) -> None:
    start, deltas = draws()
    method = optimizer(**config)
    model = start.astype(dtype)
    state = method.initial_state(model)
    for delta, expected in zip(deltas, oracle(start.tolist(), deltas.tolist()), strict=True):
        model, state = method.step(model, mean_of(delta.astype(dtype)), state)
        assert model.dtype == dtype
        assert all(value.dtype == dtype and value.shape == (SIZE,) for value in state.values())
        np.testing.assert_allclose(model, np.array(expected), rtol=tolerance, atol=tolerance)


@all_methods
def test_step_leaves_its_inputs_alone(config: dict[str, object], oracle: Oracle) -> None:
    start, deltas = draws()
    method, model = optimizer(**config), start.astype(np.float32)
    _, state = method.step(model, mean_of(deltas[1].astype(np.float32)), method.initial_state(model))
    inputs = [model, deltas[2].astype(np.float32), *state.values()]
    kept = [value.copy() for value in inputs]
    first, _ = method.step(model, mean_of(inputs[1]), state)
    again, _ = method.step(model, mean_of(inputs[1]), state)
    assert all(np.array_equal(a, b) for a, b in zip(inputs, kept, strict=True))
    assert first.tobytes() == again.tobytes()


@all_methods
def test_model_stays_where_no_update_comes(config: dict[str, object], oracle: Oracle) -> None:
    method, model = optimizer(**config), np.ones(SIZE, np.float32)
    after, _ = method.step(model, mean_of(np.zeros(SIZE, np.float32)), method.initial_state(model))
    assert after.tobytes() == model.tobytes()


@all_methods
def test_state_starts_as_the_paper_says(config: dict[str, object], oracle: Oracle) -> None:
    state = optimizer(**config).initial_state(np.ones(SIZE))
    expected = {"fedavg": {}, "fedexp": {}, "fedavgm": {"m": 0.0}, "nesterov": {"m": 0.0}}.get(
        str(config["type"]), {"m": 0.0, "v": 0.01**2}
    )
    assert {name: set(value.tolist()) for name, value in state.items()} == {n: {v} for n, v in expected.items()}


def test_fedexp_takes_a_longer_step_the_more_updates_differ_and_never_a_shorter_one() -> None:
    method, model, delta = optimizer(type="fedexp"), np.zeros(SIZE), np.full(SIZE, 0.5)
    square = SIZE * 0.25
    for squares, expected in ((square, 1.0), (6 * square, 3.0), (1000 * square, 5.0)):
        after, _ = method.step(model, Mean(delta, 3, {SQUARE_NORM: squares}), {})
        np.testing.assert_allclose(after, expected * delta, rtol=1e-3)
