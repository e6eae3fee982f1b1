"""What methods add to the sum gives the server what their papers say: FedNova, FedExP, q-FFL; weights by alignment."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_client.training.trainer import effective_steps
from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.config.training_config import TrainingConfig
from agfl_protocol.methods.alignment import AlignmentWeighting, cosine
from agfl_protocol.methods.fair_weighting import MIN_WEIGHT, FairWeighting
from agfl_protocol.methods.method import Method, State
from agfl_protocol.methods.normalization import NormalizedAveraging
from agfl_protocol.methods.square_norm import SQUARE_NORM, SquareNorm
from agfl_protocol.methods.weighting import Weighting
from agfl_protocol.update import Total, Update

RNG = np.random.default_rng(0)  # no method here draws
Drawn = list[tuple[float, float, int]]
clients = st.lists(
    st.tuples(st.floats(1.0, 100.0), st.floats(0.5, 200.0), st.integers(0, 2**32)), min_size=1, max_size=8
)


def mean_of(updates: list[Update], *methods: Method, state: State = MappingProxyType({})) -> Total:
    """Encode, sum as the secure sum does, and decode, all in float64."""
    encoded = [reduce(lambda update, method: method.encode(update, state, RNG), methods, update) for update in updates]
    metrics: dict[str, float] = {}
    for update in encoded:
        for name, value in update.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    delta = np.sum([update.gain * update.delta for update in encoded], axis=0)
    total = Total(delta, len(encoded), sum(update.weight for update in encoded), metrics)
    return reduce(lambda total, method: method.decode(total, {})[0], reversed(methods), total)


def update_of(delta: np.ndarray, weight: float = 1.0, loss: float = 0.0, steps: float = 1.0) -> Update:
    """An update in float64, for the sake of the oracles."""
    return Update(delta, weight, {}, loss=loss, steps=steps)


def updates_of(drawn: Drawn) -> tuple[list[Update], list[float]]:
    """The clients' updates, and their shares p_i as weights travel."""
    updates = [
        update_of(np.random.default_rng(seed).standard_normal(5), weight, weight / 10, steps)
        for weight, steps, seed in drawn
    ]
    weights = [Weighting(100.0).encode(update, {}, RNG).weight for update in updates]
    return updates, [weight / sum(weights) for weight in weights]


@given(clients)
def test_normalized_mean_is_that_of_fednova(drawn: Drawn) -> None:
    updates, shares = updates_of(drawn)
    tau = [update.steps for update in updates]
    tau_eff = sum(p * t for p, t in zip(shares, tau, strict=True))
    expected = tau_eff * sum(p * u.delta / t for p, t, u in zip(shares, tau, updates, strict=True))
    found = mean_of(updates, Weighting(100.0), NormalizedAveraging()).delta
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@given(clients, st.floats(0.5, 200.0))
def test_with_equal_steps_it_is_the_plain_mean(drawn: Drawn, steps: float) -> None:
    updates, _ = updates_of([(weight, steps, seed) for weight, _, seed in drawn])
    found = mean_of(updates, Weighting(100.0), NormalizedAveraging()).delta
    np.testing.assert_allclose(found, mean_of(updates, Weighting(100.0)).delta, rtol=1e-10, atol=1e-12)


@given(clients)
def test_server_gets_the_weighted_mean_of_the_squares(drawn: Drawn) -> None:
    updates, shares = updates_of(drawn)
    expected = sum(p * float(np.square(u.delta).sum()) for p, u in zip(shares, updates, strict=True))
    found = mean_of(updates, Weighting(100.0), SquareNorm())
    assert found.metrics[SQUARE_NORM] == pytest.approx(expected, rel=1e-10)
    np.testing.assert_array_equal(found.delta, mean_of(updates, Weighting(100.0)).delta)


def q_ffl(updates: list[Update], losses: list[float], q: float, lipschitz: float) -> np.ndarray:
    """The way from w to the next model: Li et al. 2020, Algorithm 2."""
    numerator, denominator = np.zeros(5), 0.0
    for update, loss in zip(updates, losses, strict=True):
        way = -lipschitz * update.delta  # Delta w_k = L (w - w_k)
        numerator += loss**q * way
        denominator += q * loss ** (q - 1) * float(way @ way) + lipschitz * loss**q
    return -numerator / denominator


@given(clients, st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.floats(0.1, 30.0))
def test_step_by_losses_is_that_of_q_ffl(drawn: Drawn, q: float, lipschitz: float) -> None:
    updates, _ = updates_of(drawn)
    fair = FairWeighting(q, lipschitz, 10.0)
    # Weights travel as multiples of 2^-20: the oracle gets the losses whose powers these are.
    losses = [10 * fair.encode(u, {}, RNG).weight ** (1 / q) if q else u.loss for u in updates]
    exact = [update_of(u.delta, loss=loss) for u, loss in zip(updates, losses, strict=True)]
    np.testing.assert_allclose(mean_of(exact, fair).delta, q_ffl(exact, losses, q, lipschitz), rtol=1e-10, atol=1e-10)


@given(clients, st.sampled_from([0.0, 0.5, 1.0, 30.0]), st.integers(0, 2**32))
def test_weights_by_alignment_are_predictions_times_a_bounded_power(drawn: Drawn, kappa: float, seed: int) -> None:
    updates, way = updates_of(drawn)[0], np.random.default_rng(seed).standard_normal(5)
    cosines = [float(u.delta @ way / np.linalg.norm(u.delta) / np.linalg.norm(way)) for u in updates]
    factors = [min(3.0, max(1 / 3, float(np.exp(kappa * cos)))) for cos in cosines]
    # Weights travel as multiples of 2^-20 of the cap.
    weights = [round(min(u.weight * f / 150, 1.0) * 2**20) for u, f in zip(updates, factors, strict=True)]
    expected = sum(w * u.delta for w, u in zip(weights, updates, strict=True)) / sum(weights)
    start: Any = np.arange(5.0)
    state = {"previous": start - way, "start": start}
    found = mean_of(updates, AlignmentWeighting(Weighting(150.0), kappa), state=state).delta
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_before_the_first_step_weights_are_the_predictions() -> None:
    updates = updates_of([(10.0, 1.0, 1), (70.0, 1.0, 2)])[0]
    aligned = mean_of(updates, AlignmentWeighting(Weighting(100.0), 1.0), state={"previous": np.zeros(0)}).delta
    np.testing.assert_array_equal(aligned, mean_of(updates, Weighting(100.0)).delta)


def test_a_cosine_is_that_of_numpy_and_zero_where_nothing_moved() -> None:
    left, right = np.random.default_rng(0).standard_normal((2, 30_000)).astype(np.float32)
    expected = left.astype(float) @ right / np.linalg.norm(left.astype(float)) / np.linalg.norm(right.astype(float))
    assert cosine(left, right) == pytest.approx(expected, abs=1e-6)
    assert cosine(left, left) == pytest.approx(1)
    assert cosine(left, np.zeros_like(left)) == cosine(np.zeros_like(left), left) == 0


def test_with_q_0_all_count_alike() -> None:
    updates = [update_of(np.arange(5.0) - k, loss=loss) for k, loss in enumerate((1.0, 2.0, 4.0))]
    mean = mean_of(updates, FairWeighting(0.0, 3.0, 8.0)).delta
    np.testing.assert_allclose(mean, np.arange(5.0) - 1, rtol=1e-10, atol=1e-12)


def test_a_loss_beyond_the_bound_counts_as_the_bound() -> None:
    fair = FairWeighting(2.0, 1.0, 8.0)
    for loss in (8.0, 1e9):
        assert fair.encode(update_of(np.ones(5), loss=loss), {}, RNG).gain == 1.0
    for loss in (0.0, 1.99):
        assert fair.encode(update_of(np.ones(5), loss=loss), {}, RNG).gain == MIN_WEIGHT
    assert fair.encode(update_of(np.ones(5), loss=2.01), {}, RNG).gain > MIN_WEIGHT


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("averaging=normalized", "server_optimizer={type: fedexp}"),
            r"aggregation\.averaging: must be mean with server_optimizer fedexp, got normalized",
        ),
        (
            ("weighting=loss", "averaging=normalized"),
            "loss needs averaging mean, got normalized",
        ),
        (
            ("weighting=loss", "server_optimizer={type: fedexp}"),
            r"aggregation\.weighting: must not be loss with server_optimizer fedexp",
        ),
        *(
            (
                (f"server_optimizer={{type: {name}}}", f"weighting={weighting}", f"averaging={averaging}"),
                f"optimizer: {name} needs weighting uniform and averaging mean, got {weighting} and {averaging}",
            )
            for name in ("scaffold", "feddyn")
            for weighting, averaging in (("tokens", "mean"), ("alignment", "mean"), ("uniform", "normalized"))
        ),
        (("server_optimizer={type: auto, arms: [{type: fedavg}, {type: scaffold}]}",), "arms"),
    ],
)
def test_methods_that_do_not_go_together_are_refused(
    run_config: Callable[..., RunConfig], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(*(f"aggregation.{override}" for override in overrides))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("scaffold", "proximal_mu=0.1", "training.proximal_mu must be 0 with server_optimizer scaffold, got 0.1"),
        ("feddyn", "proximal_mu=0.1", "training.proximal_mu must be 0 with server_optimizer feddyn, got 0.1"),
        (
            "scaffold",
            "optimizer={type: adamw, lr: 0.01}",
            "training.optimizer must be sgd without momentum with .* got",
        ),
        ("scaffold", "optimizer.momentum=0.9", "training.optimizer must be sgd without momentum .*momentum.:0.9"),
        ("scaffold", "local_steps=null", "training.local_steps is required with server_optimizer scaffold"),
    ],
)
def test_training_that_does_not_go_with_states_is_refused(
    run_config: Callable[..., RunConfig], name: str, override: str, message: str
) -> None:
    epochs = ("training.local_epochs=1",) if "local_steps" in override else ()
    optimizer = (f"aggregation.server_optimizer={{type: {name}}}", "aggregation.weighting=uniform")
    with pytest.raises(ConfigError, match=message):
        run_config(*optimizer, f"training.{override}", *epochs)
    run_config(*optimizer)


@pytest.mark.parametrize(
    ("training", "bound", "got"),
    [
        ("{optimizer: {type: sgd, lr: 0.5}, local_steps: 2, proximal_mu: 4}", "2", "2"),
        ("{local_epochs: 1, proximal_mu: 5}", "2", "2.5"),
        ("{optimizer: {type: sgd, lr: 0.5, momentum: 0.9}, local_steps: 2, proximal_mu: 1}", "0.2", "0.5"),
    ],
)
def test_steps_that_the_pull_to_the_global_model_turns_back_are_not_averaged(
    run_config: Callable[..., RunConfig], training: str, bound: str, got: str
) -> None:
    rule = (
        r"training\.optimizer\.lr \* training\.proximal_mu must be below 2 \(1 - training\.optimizer\.momentum\) "
        rf"= {bound} with aggregation\.averaging normalized, got {got} \[AGFL-CONFIG"
    )
    overrides = (f"training={training}", "aggregation.max_weight=100")
    with pytest.raises(ConfigError, match=rule):
        run_config(*overrides, "aggregation.averaging=normalized")
    run_config(*overrides, "aggregation.averaging=mean")
    run_config(*overrides, "aggregation.averaging=normalized", "training.proximal_mu=0")
    run_config(*overrides, "aggregation.averaging=normalized", "training.optimizer={type: adamw, lr: 1}")


@given(st.floats(0, 0.999), st.floats(0.001, 0.999), st.integers(1, 300))
def test_within_that_bound_every_number_of_steps_counts(momentum: float, share: float, num_steps: int) -> None:
    optimizer = {"type": "sgd", "lr": 1.0, "momentum": momentum}
    mu = share * 2 * (1 - momentum)
    config = TrainingConfig.model_validate({"optimizer": optimizer, "local_epochs": 1, "proximal_mu": mu})
    assert effective_steps(config, num_steps) > 0


def test_an_aligned_update_has_room_for_its_weight(run_config: Callable[..., RunConfig]) -> None:
    plain, aligned = run_config(), run_config("aggregation.weighting=alignment")
    assert aligned.max_weight == 3 * plain.max_weight
    epochs = ("training.local_steps=null", "training.local_epochs=1")
    with pytest.raises(ConfigError, match=r"aggregation\.max_weight .* weighting 'alignment'"):
        run_config("aggregation.weighting=alignment", *epochs)
