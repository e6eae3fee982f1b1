"""The bound of the norm follows the owners' votes on a public grid, and one round's votes do not move it far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import ImplausibleSum
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods.clipping import ABOVE, CLIPPED, MAX_STEP, START, Clipping, bound, next_step
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.methods.method import Round, State
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Layout, Total, Update

VOTES = (CLIPPED, *ABOVE)
RNG = np.random.default_rng(0)
SUMS = {"train/nll": 0.5, "train/tokens": 2.0}


def l2_of(step: int) -> float:
    return float(2 ** ((step - MAX_STEP // 2) / 2))


def voted(step: int, norms: Sequence[float]) -> Total:
    votes = dict.fromkeys(VOTES, 0.0)
    for norm in norms:
        update = Clipping(l2_of(step)).encode(Update(np.array([norm], np.float32), 1.0, {}), {}, RNG)
        votes = {name: votes[name] + update.metrics[name] for name in VOTES}
    return Total(np.zeros(1, np.float32), len(norms), 1.0, votes)


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=30), st.integers(1, MAX_STEP))
def test_it_settles_at_the_least_bound_that_half_do_not_exceed(exponents: list[float], step: int) -> None:
    norms = [float(np.float32(10.0**x)) for x in exponents]
    for _ in range(MAX_STEP):
        step = next_step(step, voted(step, norms), len(norms))
    exceed = [sum(norm > l2_of(s) for norm in norms) for s in (step, step - 1)]
    assert 2 * exceed[0] <= len(norms) < 2 * exceed[1]


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=30), st.integers(1, MAX_STEP), st.integers(0, 30))
def test_a_round_moves_it_by_a_factor_of_two_at_most_whatever_is_said(
    exponents: list[float], step: int, lies: int
) -> None:
    norms = [10.0**x for x in exponents]
    total = voted(step, norms)
    lied = Total(total.delta, total.count, 1.0, {name: float(min(lies, total.count)) for name in VOTES})
    for said in (total, lied):
        after = next_step(step, said, total.count)
        assert step - 2 <= after <= step + 1
        assert 1 <= after <= MAX_STEP


def test_one_vote_of_five_decides_nothing() -> None:
    """Within its range: at step START the bound is 8, and four honest norms of 6 hold it there."""
    assert l2_of(START) == 8
    for norm in (0.0, 1e30):
        assert next_step(START, voted(START, [6.0, 6.0, 6.0, 6.0, norm]), 5) == START


def test_a_stated_bound_and_one_of_exact_sums_stay(run_config: Callable[..., RunConfig]) -> None:
    epochs = "training={optimizer: {type: sgd, lr: 0.5}, batch_size: 4, local_epochs: 1}"
    assert bound(run_config("aggregation.clip_l2=1.5").client_plan, 0) == 1.5
    assert bound(run_config(epochs, "aggregation.weighting=uniform").client_plan, 0) == 100
    assert bound(run_config("evaluation.max_examples=513").client_plan, 42) == 100, (
        "rounds that evaluate are exact sums"
    )
    assert bound(run_config().client_plan, 42) == 2
    assert math.isclose(bound(run_config().client_plan, 41), 2**0.5)


@pytest.mark.parametrize("votes", [(1.0, 0.0, 3.0), (3.0, 4.0, 3.0), (0.0, 0.0, 4.0)], ids=str)
def test_votes_that_nobody_can_cast_are_not_used(
    run_config: Callable[..., RunConfig], votes: tuple[float, ...]
) -> None:
    config, layout = run_config(), Layout(("t",), ((50,),))
    plan = QuantizationPlan(2, 3)
    codec = UpdateCodec.for_round(
        Round(config.client_plan, arrays={"clipping": {"step": np.array([START])}}),
        config.build_task(),
        layout,
        plan,
        round_number=1,
        train=True,
        evaluate=False,
    )
    lanes = np.zeros(codec.num_lanes, np.uint64)
    for number in range(3):
        delta = np.full(50, 1e-3, np.float32)
        lanes += codec.encode(Update(delta, 1.0, SUMS), np.random.default_rng(number))
    codec.decode_checked(lanes)
    header = codec.quantization.header
    for name, vote in zip(VOTES, votes, strict=True):
        lanes[2 + header.metrics.index(name)] = round(vote * 2**20)
    with pytest.raises(ImplausibleSum, match=r"^(clip: |metric clip/above_)"):
        codec.decode_checked(lanes)


@pytest.mark.parametrize(("step", "highest"), [(44, 44), (20, 60), (80, 80)])
def test_after_a_rollback_it_comes_back_by_a_step_a_round(step: int, highest: int) -> None:
    """Whatever the owners vote for: here all of them exceed every bound."""
    clip = Clipping(1.0, is_learned=True)
    state: State = {"step": np.array([step]), "highest": np.array([highest])}
    low = clip.restarted(state)
    assert low == {"step": step - 2, "highest": step - 2}
    steps = []
    for _ in range(3):
        total = Total(np.zeros(1, np.float32), 5, 1.0, {**dict.fromkeys(VOTES, 5.0), DIVERGED: 0.0})
        _, low = clip.decode(total, low)
        steps.append(int(low["step"][0]))
    assert steps == [step - 2, step - 1, step]


def test_a_fixed_bound_keeps_no_state() -> None:
    clip = Clipping(1.0)
    total = Total(np.zeros(1, np.float32), 5, 1.0, {**dict.fromkeys(VOTES, 5.0), DIVERGED: 0.0})
    assert (
        clip.initial_state(total.delta)
        == clip.decode(total, {})[1]
        == clip.restarted({})
        == clip.broadcast({}, train=True, is_retry=False)
        == {}
    )
