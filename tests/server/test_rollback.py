"""Losses confirm a model or refute it; a refuted one is given up for the last that was confirmed, with less trust."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_protocol.methods.alignment import AlignmentWeighting
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.owner_states.feddyn import FedDyn
from agfl_protocol.methods.owner_states.owner_state import as_arrays, used_in
from agfl_protocol.methods.weighting import Weighting
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.optimizers.momentum import FedAvgMConfig
from agfl_protocol.update import Vector
from agfl_server.rounds.observer import Row
from agfl_server.rounds.rollback import EVAL_RISE, LAST_RISE, TRAIN_RISE, Confirmed, after_round, at_end, judge
from agfl_server.rounds.state import ServerState

CLIP, ALIGNMENT = Clipping(1.0, is_learned=True), AlignmentWeighting(Weighting(1.0), 1.0)
OWNERS = FedDyn(is_secure=False, alpha=0.1)
METHODS = (CLIP, ALIGNMENT, OWNERS)
OPTIMIZER = build_optimizer(FedAvgMConfig(type="fedavgm"))
EVERY = 4


def model_of(number: int) -> Vector:
    return np.full(3, number, np.float32)


def row_of(number: int, trained: float | None = None, evaluated: float | None = None) -> Row:
    return {"round": number, "train/loss": trained, "eval/loss": evaluated, "eval/accuracy": evaluated}


def run(trained: Sequence[float], evaluated: Sequence[float]) -> list[tuple[int, bool]]:
    """Judge model after model; each has a loss of training, and one of every `EVERY` one of evaluation."""
    confirmed, verdicts = Confirmed(), []
    for number, (train, evaluate) in enumerate(zip(trained, evaluated, strict=True)):
        row = row_of(number, evaluated=evaluate) if number % EVERY == 0 else None
        confirmed, is_refuted = judge(confirmed, model_of(number), number, train, row)
        verdicts.append((confirmed.round, is_refuted))
    return verdicts


@given(st.integers(0, 2**32), st.floats(0, 0.2), st.integers(1, 40))
def test_honest_losses_refute_nothing(seed: int, noise: float, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    falling = 2 + 3 * np.exp(-np.arange(rounds) / 5)
    trained, evaluated = (falling + rng.uniform(-noise, noise, rounds) for _ in range(2))
    assert not any(refuted for _, refuted in run(trained.tolist(), evaluated.tolist()))


@pytest.mark.parametrize(
    ("bad", "number"),
    [(2.0 + TRAIN_RISE + 0.01, 6), (8.06, 6), (math.nan, 6), (2.0 + EVAL_RISE + 0.01, 8), (math.inf, 8)],
)
def test_a_refuted_model_leads_back_to_the_last_that_was_confirmed(bad: float, number: int) -> None:
    trained, evaluated = [2.0] * 10, [2.0] * 10
    (evaluated if number % EVERY == 0 else trained)[number] = bad
    verdicts = run(trained, evaluated)
    assert verdicts[number] == (number - 1, True)
    assert not any(refuted for place, (_, refuted) in enumerate(verdicts) if place != number)


def test_a_model_is_not_confirmed_by_a_loss_above_those_before() -> None:
    assert [confirmed for confirmed, _ in run([2.0, 2.0, 2.5, 2.0], [9.0] * 4)] == [0, 1, 1, 3]


def test_one_lie_that_lowers_a_loss_refutes_nothing() -> None:
    trained, evaluated = [2.0] * 16, [2.0] * 16
    trained[5] = evaluated[8] = 0.0
    assert not any(refuted for _, refuted in run(trained, evaluated))


def state_of(number: int, row: Row, confirmed: Confirmed) -> ServerState:
    state = OPTIMIZER.initial_state(model_of(number))
    moved = {name: value + 1 for name, value in state.items()}
    methods = {
        CLIP.name: {"step": np.array([44]), "highest": np.array([50])},
        ALIGNMENT.name: {"previous": model_of(0)},
        OWNERS.name: {"sum": model_of(3), "owners": np.array([4]), **as_arrays([(1, ("alice",))])},
    }
    return ServerState(
        "r",
        number,
        model_of(number),
        moved,
        row,
        methods,
        confirmed=confirmed,
    )


CONFIRMED = Confirmed(model_of(1), 1, {"eval/loss": 2.0, "eval/accuracy": 0.7}, (2.0,), (2.0,))


def test_what_came_of_the_refuted_model_is_given_up() -> None:
    """Momentum, owners' states, half the clip; and what the restored model was found to be is not measured again."""
    before = state_of(4, row_of(4, 2.0, 9.0), CONFIRMED)
    after, is_back = after_round(OPTIMIZER, METHODS, before, state_of(5, row_of(5, 2.1), CONFIRMED), before.row)
    assert is_back
    assert np.array_equal(after.model, model_of(1))
    assert not after.optimizer["m"].any()
    assert after.of(CLIP) == {"step": 42, "highest": 42}
    assert (after.of(ALIGNMENT)["previous"].size, after.round) == (0, 5)
    assert not after.of(OWNERS)["sum"].any()
    assert used_in(after.of(OWNERS)) == ()
    assert (after.row["eval/loss"], after.row["eval/accuracy"], after.row["train/loss"]) == (2.0, 0.7, 2.1)


def test_a_model_that_no_loss_refutes_is_confirmed() -> None:
    before = state_of(4, row_of(4, 2.0, 2.0), CONFIRMED)
    after, is_back = after_round(OPTIMIZER, METHODS, before, state_of(5, row_of(5, 2.0), CONFIRMED), before.row)
    assert not is_back
    assert after.confirmed.round == 4


@pytest.mark.parametrize(("loss", "is_worse"), [(2.0 + LAST_RISE + 0.01, True), (2.0 + LAST_RISE - 0.01, False)])
def test_the_last_model_is_no_worse_than_the_last_confirmed_one(loss: float, is_worse: bool) -> None:
    state, is_back = at_end(OPTIMIZER, METHODS, state_of(9, row_of(9, 2.0, loss), CONFIRMED))
    assert is_back == is_worse
    assert np.array_equal(state.model, model_of(1 if is_worse else 9))
    assert state.row["eval/loss"] == (2.0 if is_worse else loss)


def test_nothing_is_confirmed_before_the_first_round() -> None:
    before = state_of(0, row_of(0), Confirmed())
    after, is_back = after_round(OPTIMIZER, METHODS, before, state_of(1, row_of(1, math.nan), Confirmed()), None)
    assert not is_back
    assert np.array_equal(after.model, model_of(1))
    assert replace(after.confirmed, model=model_of(0)).round == 0


def test_a_restored_model_keeps_what_it_was_found_to_be() -> None:
    """It is trained, but not evaluated again."""
    confirmed, is_refuted = judge(CONFIRMED, model_of(1), 5, 2.0, None)
    assert not is_refuted
    assert (confirmed.metrics, confirmed.round) == (CONFIRMED.metrics, 1)
