"""`auto` steps as its first arm unless the losses say that another is better, and goes back where they explode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from agfl_protocol.methods import candidates
from agfl_protocol.optimizers import ServerOptimizerConfig, build_optimizer
from agfl_protocol.optimizers.portfolio import PortfolioConfig
from agfl_protocol.optimizers.server_optimizer import ServerOptimizer
from agfl_protocol.update import Mean
from agfl_server.rounds.rollback import Confirmed, judge

SIZE, ARMS = 5, 4
MODELS = ARMS
MARGIN = PortfolioConfig(type="auto").margin
Vector = NDArray[Any]


def portfolio(**settings: object) -> ServerOptimizer:
    return build_optimizer(TypeAdapter(ServerOptimizerConfig).validate_python({"type": "auto", **settings}))


def arms() -> list[ServerOptimizer]:
    return [build_optimizer(config) for config in PortfolioConfig(type="auto").arms]


def mean(delta: Vector, losses: Sequence[float] = ()) -> Mean:
    """What a round brings; `losses` are those of the models that it broadcast, over 10 predictions."""
    return Mean(delta, 3, candidates.sums([10 * loss for loss in losses], 10) if losses else {})


def deltas(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((count, SIZE))


@given(st.lists(st.lists(st.floats(0.8, 1.2), min_size=ARMS, max_size=ARMS), min_size=1, max_size=12))
def test_every_step_is_that_of_the_first_arm_or_of_the_best_if_that_is_better_by_the_margin(
    rounds: list[list[float]],
) -> None:
    """Each arm's own state is that of a run of its own on the same updates."""
    auto = portfolio(every=1)
    model: Vector = np.ones(SIZE)
    state, choice = auto.initial_state(model), 0
    alone = [(arm, arm.initial_state(model)) for arm in arms()]
    for number, (delta, by_arm) in enumerate(zip(deltas(len(rounds)), rounds, strict=True)):
        losses = [by_arm[choice], *by_arm[:choice], *by_arm[choice + 1 :]] if number else []
        if losses:
            choice = int(np.argmin(by_arm)) if min(by_arm) < by_arm[0] - MARGIN else 0
        stepped = [arm.step(model, mean(delta), own) for arm, own in alone]
        alone = [(arm, own) for (arm, _), (_, own) in zip(alone, stepped, strict=True)]
        model, state = auto.step(model, mean(delta, losses), state)
        np.testing.assert_allclose(model, stepped[choice][0], rtol=1e-12)
        others = [x for i, (x, _) in enumerate(stepped) if i != choice]
        np.testing.assert_allclose(auto.broadcast(model, state), np.concatenate([model, *others]), rtol=1e-12)


@pytest.mark.parametrize("every", [1, 3])
def test_other_models_are_broadcast_when_a_choice_is_due_and_first_after_the_first_step(every: int) -> None:
    auto = portfolio(every=every)
    model: Vector = np.ones(SIZE)
    state, sizes, losses = auto.initial_state(model), [], list[float]()
    for delta in deltas(8):
        sizes.append(auto.broadcast(model, state).size // SIZE)
        losses = [1.0] * MODELS if sizes[-1] > 1 else []
        model, state = auto.step(model, mean(delta, losses), state)
    assert sizes == [MODELS if number % every == 1 % every and number > 0 else 1 for number in range(8)]


def test_where_no_owner_holds_text_out_the_first_arm_stays() -> None:
    auto = portfolio(every=1)
    model: Vector = np.ones(SIZE)
    state = auto.initial_state(model)
    nobody = {**candidates.sums([0.0] * MODELS, 0)}
    for delta in deltas(4):
        model, state = auto.step(model, Mean(delta, 3, nobody), state)
    assert auto.chosen(state) == "nesterov lr 0.7"


def test_it_begins_anew_with_half_the_steps_where_the_run_goes_back() -> None:
    auto, start = portfolio(every=1), np.ones(SIZE)
    first, second, third = deltas(3)
    one, state = auto.step(start, mean(first), auto.initial_state(start))
    _, state = auto.step(one, mean(second, [2.0] * ARMS), state)
    state = auto.restarted(start, state)
    assert auto.chosen(state) == "nesterov lr 0.7 times 0.5"
    assert auto.broadcast(start, state).size == SIZE  # nothing of what was given up is measured
    again, _ = auto.step(start, mean(third), state)
    fresh, _ = arms()[0].step(start, mean(third), arms()[0].initial_state(start))
    np.testing.assert_allclose(again - start, (fresh - start) / 2, rtol=1e-12)


@pytest.mark.parametrize("curvature", [0.003, 0.03, 0.3, 1.0, 3.0])
def test_it_is_never_much_worse_than_the_best_arm(curvature: float) -> None:
    """Clients that each take one gradient step of length 1 on a bowl that is steeper in some directions.

    At a curvature of 3 the first arm alone diverges, and so does FedAvg.
    """
    scales = curvature * np.linspace(0.1, 1.0, SIZE)

    def loss(x: Vector) -> float:
        return float(0.5 * (scales * x) @ x) + 1.0

    def end(method: ServerOptimizer, *, goes_back: bool = False) -> float:
        model = np.full(SIZE, 3.0)
        state = method.initial_state(model)
        confirmed = Confirmed()
        for number in range(60):
            models = method.broadcast(model, state).reshape(-1, SIZE)
            losses = [loss(x) for x in models] if len(models) > 1 else []
            stepped, after = method.step(model, mean(-scales * model, losses), state)
            confirmed, is_refuted = judge(confirmed, model, number, loss(model), None)
            if is_refuted and goes_back:
                stepped, after = confirmed.model, method.restarted(confirmed.model, state)
            model, state = stepped, after
        return loss(model) - 1.0

    alone, start = [end(arm) for arm in arms()], loss(np.full(SIZE, 3.0)) - 1.0
    assert end(portfolio(), goes_back=True) <= 1.1 * min(alone) + 0.02 * start
    assert (curvature == 3.0) == (alone[0] > start), "what makes the last case one"


def test_float32_stays_float32() -> None:
    auto, model = portfolio(every=1), np.ones(SIZE, np.float32)
    state = auto.initial_state(model)
    for number, delta in enumerate(deltas(3)):
        losses = [1.0] * MODELS if number else []
        model, state = auto.step(model, mean(delta.astype(np.float32), losses), state)
        assert model.dtype == auto.broadcast(model, state).dtype == np.float32


def test_an_owners_loss_is_bounded() -> None:
    sums = candidates.sums([5.0, math.inf, math.nan, 1e30], 10)
    assert [sums[name] for name in candidates.names(4)] == [5.0, 1e4, 1e4, 1e4, 10.0]
