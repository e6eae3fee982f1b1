"""SCAFFOLD and FedDyn, owners and server together, are what their papers say, and end where FedAvg does not.

Owner i has the loss f_i(y) = y A_i y / 2 - b_i y. Everything in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agfl_protocol.methods.method import State, Step
from agfl_protocol.methods.owner_states.feddyn import FedDyn
from agfl_protocol.methods.owner_states.owner_state import LOST, OWN, OwnerState
from agfl_protocol.methods.owner_states.scaffold import CONTROL, Scaffold
from agfl_protocol.optimizers import ServerOptimizerConfig, build_optimizer
from agfl_protocol.optimizers.drift import FedDynConfig, ScaffoldConfig
from agfl_protocol.optimizers.fedavg import FedAvgConfig
from agfl_protocol.update import Mean

SIZE, OWNERS, STEPS, LR, SERVER_LR, ALPHA = 5, 4, 6, 0.1, 0.7, 0.3
Real = NDArray[np.floating[Any]]
START: Real = np.zeros(SIZE)
Cohorts = Sequence[Sequence[int]]
FULL: Cohorts = [range(OWNERS)] * 12
PARTIAL: Cohorts = [(0, 2), (1, 2, 3), (3,), (0, 1), (0, 1, 2, 3), (2,), (1, 3), (0, 3), (1,), (0, 2, 3)]
RNG = np.random.default_rng(11)
ROOTS = RNG.standard_normal((OWNERS, SIZE, SIZE)) * np.array([0.2, 0.5, 0.8, 1.0])[:, None, None]
A = ROOTS @ ROOTS.transpose(0, 2, 1) / 2 + 0.3 * np.eye(SIZE)
B = RNG.standard_normal((OWNERS, SIZE)) * 3
NOISE = RNG.standard_normal((12, OWNERS, STEPS, SIZE))  # of the gradient of a batch


def gradient(i: int, y: Real) -> Real:
    return np.asarray(A[i] @ y - B[i])


def scaffold(cohorts: Cohorts, noise: Real) -> Iterator[tuple[Real, list[Real]]]:
    """Karimireddy et al. 2020, Algorithm 1 with option II; yields x and all K lr c_i after each round."""
    x, c, c_of = np.zeros(SIZE), np.zeros(SIZE), [np.zeros(SIZE) for _ in range(OWNERS)]
    for t, cohort in enumerate(cohorts):
        y_deltas, c_deltas = [], []
        for i in cohort:
            y = x.copy()
            for k in range(STEPS):
                y = y - LR * (gradient(i, y) + noise[t, i, k] - c_of[i] + c)
            c_plus = c_of[i] - c + (x - y) / (STEPS * LR)
            y_deltas.append(y - x)
            c_deltas.append(c_plus - c_of[i])
            c_of[i] = c_plus
        x = x + SERVER_LR * sum(y_deltas) / len(cohort)
        c = c + len(cohort) / OWNERS * (sum(c_deltas) / len(cohort))
        yield x, [STEPS * LR * own for own in c_of]


def feddyn(cohorts: Cohorts, noise: Real) -> Iterator[tuple[Real, list[Real]]]:
    """Acar et al. 2021, Algorithm 1, locally by gradient descent; yields x and all gradient states / alpha."""
    x, h, states = np.zeros(SIZE), np.zeros(SIZE), [np.zeros(SIZE) for _ in range(OWNERS)]
    for t, cohort in enumerate(cohorts):
        models = []
        for i in cohort:
            y = x.copy()
            for k in range(STEPS):
                y = y - LR * (gradient(i, y) + noise[t, i, k] - states[i] + ALPHA * (y - x))
            states[i] = states[i] - ALPHA * (y - x)
            models.append(y)
        h = h - ALPHA / OWNERS * sum(model - x for model in models)
        x = sum(models) / len(cohort) - h / ALPHA
        yield x, [own / ALPHA for own in states]


METHODS: dict[str, tuple[ServerOptimizerConfig, OwnerState, Callable[..., Iterator[tuple[Real, list[Real]]]]]] = {
    "scaffold": (ScaffoldConfig(type="scaffold", lr=SERVER_LR), Scaffold(False, STEPS * LR), scaffold),
    "feddyn": (FedDynConfig(type="feddyn", alpha=ALPHA), FedDyn(False, ALPHA), feddyn),
}
all_methods = pytest.mark.parametrize("method", METHODS)


def ours(
    method: str, cohorts: Cohorts, noise: Real, owners: int = OWNERS, lost: tuple[int, int] = (-1, -1)
) -> Iterator[tuple[Real, list[Real], State]]:
    """What owners and server of the product do; in round `lost[0]` the owner `lost[1]` finds its state gone."""
    config, one, _ = METHODS[method]
    optimizer, x = build_optimizer(config), START
    state, steps, own = one.initial_state(x), optimizer.initial_state(x), [START] * OWNERS
    for t, cohort in enumerate(cohorts):
        arrays, updates = one.broadcast(state, train=True, is_retry=False), []
        if t == lost[0]:
            own[lost[1]] = START
        for i in cohort:
            y, change = x.copy(), one.gradient({**arrays, OWN: own[i]})
            assert change is not None
            assert change.shift is not None
            for k in range(STEPS):
                y -= LR * (gradient(i, y) + noise[t % len(noise), i, k] + change.pull * (y - x) + change.shift)
            updates.append(y - x)
            own[i] = own[i] + one.change(arrays, updates[-1])
        metrics = {LOST: float(t == lost[0])}
        mean = Mean(np.mean(updates, axis=0), len(cohort), metrics, owners)
        after, steps = optimizer.step(x, mean, steps)
        x, state = one.stepped(state, Step(x, after, mean, t))
        if t == lost[0]:
            own = [START] * OWNERS
        yield x, own, state


@all_methods
@pytest.mark.parametrize("cohorts", [FULL, PARTIAL], ids=["full", "partial"])
def test_owners_and_server_are_those_of_the_paper(method: str, cohorts: Cohorts) -> None:
    oracle = METHODS[method][2](cohorts, NOISE)
    for (x, states), (found, own, state) in zip(oracle, ours(method, cohorts, NOISE), strict=True):
        np.testing.assert_allclose(found, x, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(own, states, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(state["sum"], np.sum(states, axis=0), rtol=1e-10, atol=1e-10)


OPTIMUM = np.linalg.solve(A.sum(axis=0), B.sum(axis=0))
MANY: Cohorts = [range(OWNERS)] * 400
STILL = np.zeros((1, OWNERS, STEPS, SIZE))


def distance(x: Real) -> float:
    return float(np.linalg.norm(x - OPTIMUM) / np.linalg.norm(OPTIMUM))


@all_methods
@pytest.mark.parametrize("owners", [OWNERS, OWNERS + 3])
def test_they_reach_the_optimum_that_fedavg_misses_also_where_owners_never_come(method: str, owners: int) -> None:
    *_, (x, own, state) = ours(method, MANY, STILL, owners)
    assert distance(x) < 1e-6
    np.testing.assert_allclose(state["sum"], np.sum(own, axis=0), atol=1e-9)
    average, y_all = build_optimizer(FedAvgConfig(type="fedavg")), START
    for _ in MANY:
        ways = []
        for i in range(OWNERS):
            y = y_all.copy()
            for _ in range(STEPS):
                y -= LR * gradient(i, y)
            ways.append(y - y_all)
        y_all, _ = average.step(y_all, Mean(np.mean(ways, axis=0), OWNERS), {})
    assert distance(y_all) > 1e-2


@all_methods
def test_a_lost_state_costs_no_more_than_to_begin_anew(method: str) -> None:
    runs = list(ours(method, MANY, STILL, lost=(5, 1)))
    assert not runs[5][2]["sum"].any()
    assert distance(runs[-1][0]) < 1e-6


@all_methods
def test_float32_stays_float32_and_inputs_stay_as_they_are(method: str) -> None:
    one, model = METHODS[method][1], np.ones(SIZE, np.float32)
    mean = Mean(np.full(SIZE, 0.25, np.float32), 2, {LOST: 0.0}, 3)
    first, state = one.stepped(one.initial_state(model), Step(model, model + mean.delta, mean, 1))
    kept = {name: value.copy() for name, value in state.items()}
    again, _ = one.stepped(state, Step(first, first + mean.delta, mean, 2))
    assert first.dtype == again.dtype == state["sum"].dtype == np.float32
    control = one.broadcast(state, train=True, is_retry=False).get(CONTROL)
    assert (control is None) == (method == "feddyn")
    assert control is None or control.dtype == np.float32
    assert all(np.array_equal(state[name], value) for name, value in kept.items())
    np.testing.assert_array_equal(model, 1)
