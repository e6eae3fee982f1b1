"""No ring is trained by so few that the server would learn who moved it, and none that does not pay."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from agfl_models.model.config import ModelConfig
from agfl_models.model.rings import Rings
from agfl_models.validation import validate
from agfl_protocol.config.elastic_config import ElasticConfig, GrowthConfig
from agfl_protocol.methods import elastic
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.methods.weighting import Weighting
from agfl_protocol.optimizers import ServerOptimizerConfig, build_optimizer
from agfl_protocol.optimizers.adaptive import FedAdamConfig
from agfl_protocol.optimizers.momentum import NesterovConfig
from agfl_protocol.optimizers.portfolio import PortfolioConfig
from agfl_protocol.update import Mean, Total, Update
from agfl_server.elastic.per_ring import PerRing, without_ring
from agfl_server.elastic.ring_plan import RingState, after_round, plan_rings

CONFIG = validate(
    ModelConfig,
    {"vocab_size": 7, "dim": 8, "layers": [{"type": "ff", "hidden_dim": 8}, {"type": "rnn", "cell": "mingru"}]},
    "model",
)
RINGS = Rings.of(CONFIG, (0.25, 0.5, 1.0))
MODEL = np.random.default_rng(0).standard_normal(RINGS.ring.size).astype(np.float32)
METHODS: dict[str, ServerOptimizerConfig] = {
    "nesterov": NesterovConfig(type="nesterov"),
    "fedadam": FedAdamConfig(type="fedadam"),
    "auto": PortfolioConfig(type="auto", every=1),
}


def groups(plan: tuple[int, ...], tiers: tuple[int, ...]) -> list[int]:
    return [sum(n for k, n in zip(plan, tiers, strict=True) if k == rings) for rings in set(plan)]


@pytest.mark.parametrize("min_cohort", [2, 5])
def test_every_plan_hides_who_trains_what_and_asks_nobody_for_more_than_it_holds(min_cohort: int) -> None:
    for tiers in product(range(0, 13, 3), range(0, 8), range(0, 8)):
        for num_open in (1, 2, 3):
            plan = plan_rings(tiers, min_cohort, num_open)
            assert list(plan) == sorted(plan)
            assert all(1 <= rings <= min(tier, num_open) for tier, rings in enumerate(plan, start=1))
            if set(plan) != {1}:  # with one group there is nothing but the cohort to hide in
                assert all(owners == 0 or owners >= min_cohort for owners in groups(plan, tiers)), (tiers, plan)


@pytest.mark.parametrize(
    ("tiers", "plan"),
    [
        ((10, 9, 5), (1, 2, 3)),
        ((10, 9, 4), (1, 2, 2)),  # four would be too few to hide in: they train as those below
        ((10, 2, 12), (1, 1, 3)),  # the two join the ten
        ((3, 9, 12), (1, 1, 3)),  # the three would be too few to be the rest: the nine join them
        ((0, 9, 12), (1, 2, 3)),
        ((3, 0, 4), (1, 1, 1)),
    ],
)
def test_tiers_that_are_too_small_are_merged(tiers: tuple[int, ...], plan: tuple[int, ...]) -> None:
    assert plan_rings(tiers, 5, 3) == plan


def mean(holders: tuple[int, int], losses: tuple[float, float] = (1.0, 1.0)) -> Mean:
    rng = np.random.default_rng(1)
    metrics = {f"rings/holders_{k}": float(n) for k, n in enumerate(holders, start=2)}
    metrics |= {f"rings/tier_{k}": 5.0 for k in (1, 2, 3)}
    for k, loss in enumerate(losses, start=2):
        metrics |= {f"rings/with_{k}": loss, f"rings/without_{k}": 1.0, f"rings/predictions_{k}": 1.0}
    return Mean(rng.standard_normal(MODEL.size).astype(np.float32), 15, metrics)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("holders", "opened"), [((9, 5), 3), ((9, 4), 2), ((4, 3), 1), ((4, 9), 1)])
def test_what_too_few_trained_stays_with_its_momentum(method: str, holders: tuple[int, int], opened: int) -> None:
    optimizer = build_optimizer(METHODS[method], lambda inner: PerRing(inner, RINGS, 5))
    model, state = optimizer.step(MODEL, mean((9, 9)), optimizer.initial_state(MODEL))
    after, _ = optimizer.step(model, mean(holders), state)
    frozen = RINGS.ring >= opened
    np.testing.assert_array_equal(after[frozen], model[frozen])
    assert (after != model)[~frozen].mean() > 0.9
    momentum = [name for name, value in state.items() if value.shape == MODEL.shape and name.endswith("m")]
    _, later = optimizer.step(model, mean(holders), state)
    for name in momentum:
        np.testing.assert_array_equal(later[name][frozen], state[name][frozen])


def test_without_small_rings_it_is_the_optimizer_itself() -> None:
    plain, nested = (build_optimizer(METHODS["fedadam"], w) for w in (lambda o: o, lambda o: PerRing(o, RINGS, 5)))
    expected, _ = plain.step(MODEL, mean((9, 9)), plain.initial_state(MODEL))
    found, _ = nested.step(MODEL, mean((9, 9)), nested.initial_state(MODEL))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shrinkage", [0.0, 0.5, 1.0])
def test_a_ring_moves_by_the_shrunk_mean_of_its_holders(shrinkage: float) -> None:
    """lambda = 0 is the holders' mean (HeteroFL), lambda = 1 the mean over all with zeros for the others."""
    rng = np.random.default_rng(2)
    weighting, method = Weighting(8.0), elastic.Elastic(RINGS.ring, 3, shrinkage)
    zeros: Any = np.zeros(MODEL.size)  # float64, for the sake of the oracle
    deltas, weights, total = [], [], Total(zeros, 0, 0.0, {})
    for rings, weight in ((1, 8.0), (2, 2.0), (2, 4.0), (3, 1.0)):
        delta: Any = rng.standard_normal(MODEL.size) * RINGS.held(rings)
        own = {elastic.TIER: np.array([rings]), elastic.TRAINED: np.array([rings])}
        update = weighting.encode(Update(delta, weight, {DIVERGED: 0.0}), {}, rng)
        update = method.encode(update, own, rng)
        metrics = {name: total.metrics.get(name, 0.0) + value for name, value in update.metrics.items()}
        total = Total(total.delta + update.gain * delta, total.count + 1, total.weight + update.weight, metrics)
        deltas.append(delta)
        weights.append(update.weight)
    assert elastic.tiers(total.metrics, 3) == [1, 2, 1]
    assert elastic.holders(total.metrics, 3) == [3, 1]
    found = weighting.decode(method.decode(total, {})[0], {})[0].delta
    for ring, holding in ((0, weights), (1, weights[1:]), (2, weights[3:])):
        of_ring, covered = RINGS.ring == ring, sum(holding)
        summed = sum(w * delta[of_ring] for w, delta in zip(weights, deltas, strict=True))
        expected = summed / (covered + shrinkage * (sum(weights) - covered))
        np.testing.assert_allclose(found[of_ring], expected, rtol=1e-10)


GROWING = ElasticConfig(growth=GrowthConfig(patience=2, min_gain=0.01))


def grow(losses: list[float], gains: tuple[float, float] = (0.1, 0.1)) -> list[int]:
    """Return how many rings are open after each evaluation."""
    state, opened = RingState.of(GROWING), []
    for loss in losses:
        state = after_round(state, GROWING, mean((5, 5), (1 - gains[0], 1 - gains[1])).metrics, loss, 5)
        opened.append(state.open)
    return opened


def test_the_model_grows_where_the_loss_stalls() -> None:
    assert grow([3.0, 2.9, 2.8, 2.7]) == [1, 1, 1, 1]
    assert grow([3.0, 3.0, 3.0, 2.5, 2.5, 2.5, 2.5, 2.5]) == [1, 1, 2, 2, 2, 3, 3, 3]
    assert grow([3.0, 2.99, 2.98]) == [1, 1, 2]  # gains of less than one percent are none


def test_a_ring_that_does_not_pay_is_closed_for_good() -> None:
    assert grow([3.0] * 9, gains=(0.002, 0.1)) == [1, 1, 2, 2, 1, 1, 1, 1, 1]
    assert grow([3.0] * 9, gains=(0.1, 0.002)) == [1, 1, 2, 2, 3, 3, 2, 2, 2]


def test_rounds_that_do_not_evaluate_change_nothing() -> None:
    state = RingState.of(GROWING)
    for _ in range(9):
        state = after_round(state, GROWING, mean((5, 5)).metrics, None, 5)
    assert (state.open, state.by_tier) == (1, (1, 1, 1))


def test_a_closed_ring_is_as_if_it_had_never_been_opened() -> None:
    optimizer = build_optimizer(METHODS["nesterov"], lambda inner: PerRing(inner, RINGS, 5))
    model, state = optimizer.step(MODEL, mean((9, 9)), optimizer.initial_state(MODEL))
    closed, after = without_ring(3, RINGS, optimizer, model, state)
    ring = RINGS.ring == 2
    assert not closed[ring & RINGS.reads].any()
    assert not after["m"][ring].any()
    kept = ~(ring & RINGS.reads)
    np.testing.assert_array_equal(closed[kept], model[kept])
    np.testing.assert_array_equal(after["m"][~ring], state["m"][~ring])
