"""FedCM, owners and server together, is Algorithm 2 of its paper, drifts less than FedAvg, and says who goes with it.

Owner i has the loss f_i(y) = y A_i y / 2 - b_i y. Everything in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import create_model

from agfl_models.errors import ConfigError
from agfl_models.registry import Registry
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods import registry
from agfl_protocol.methods.fedcm import AGREEMENT, MOMENTUM, FedCM
from agfl_protocol.methods.method import Method, MethodConfig, Step
from agfl_protocol.update import Mean, Update

SIZE, OWNERS, STEPS, LR, SERVER_LR, ALPHA, ROUNDS = 5, 4, 6, 0.1, 0.7, 0.3, 12
Real = NDArray[np.floating[Any]]
RNG = np.random.default_rng(11)
ROOTS = RNG.standard_normal((OWNERS, SIZE, SIZE)) * np.array([0.2, 0.5, 0.8, 1.0])[:, None, None]
A = ROOTS @ ROOTS.transpose(0, 2, 1) / 2 + 0.3 * np.eye(SIZE)
B = RNG.standard_normal((OWNERS, SIZE)) * 3
NOISE = RNG.standard_normal((ROUNDS, OWNERS, STEPS, SIZE))  # of the gradient of a batch
PLAIN_SGD = "training.optimizer must be sgd without momentum with methods fedcm"
FEDCM = ("methods=[{type: fedcm, alpha: 0.3}]",)


def gradient(i: int, y: Real) -> Real:
    return np.asarray(A[i] @ y - B[i])


def paper(alpha: float) -> Iterator[tuple[Real, Real]]:
    """Xu et al. 2021, Algorithm 2, with eta_g = SERVER_LR STEPS LR; yields x and Delta after each round."""
    x, direction = np.zeros(SIZE), np.zeros(SIZE)
    for t in range(ROUNDS):
        moved = []
        for i in range(OWNERS):
            y = x.copy()
            for k in range(STEPS):
                y = y - LR * (alpha * (gradient(i, y) + NOISE[t, i, k]) + (1 - alpha) * direction)
            moved.append(-(y - x) / (LR * STEPS))
        direction = np.mean(moved, axis=0)
        x = x - SERVER_LR * STEPS * LR * direction
        yield x, direction


def ours(alpha: float) -> Iterator[tuple[Real, Real]]:
    """What owners and server of the product do."""
    method, x = FedCM(alpha, STEPS * LR), np.zeros(SIZE)
    state = method.initial_state(x)  # type: ignore[arg-type]
    for t in range(ROUNDS):
        sent, updates = method.broadcast(state, train=True, is_retry=False), []
        for i in range(OWNERS):
            y, change = x.copy(), method.gradient(sent)
            assert change.shift is not None
            for k in range(STEPS):
                y -= LR * (change.scale * (gradient(i, y) + NOISE[t, i, k]) + change.shift)
            updates.append(y - x)
        mean = Mean(np.mean(updates, axis=0), OWNERS)
        x, state = method.stepped(state, Step(x, x + SERVER_LR * mean.delta, mean))  # type: ignore[assignment, arg-type]
        yield x, state[MOMENTUM] / -(LR * STEPS)


@pytest.mark.parametrize("alpha", [ALPHA, 0.05, 1.0])
def test_owners_and_server_are_those_of_the_paper(alpha: float) -> None:
    for (x, direction), (found, momentum) in zip(paper(alpha), ours(alpha), strict=True):
        np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(momentum, direction, rtol=1e-12, atol=1e-12)


def test_clients_drift_less_the_more_of_the_common_direction_they_take() -> None:
    """How far owners end from each other, over how far they go: the paper's reason."""
    method = FedCM(0.2, STEPS * LR)
    way = -(STEPS * LR) * np.mean([gradient(i, np.zeros(SIZE)) for i in range(OWNERS)], axis=0)

    def spread(alpha: float) -> float:
        change = replace(method, alpha=alpha).gradient({MOMENTUM: way})
        assert change.shift is not None
        ends = []
        for i in range(OWNERS):
            y = np.zeros(SIZE)
            for _ in range(STEPS):
                y -= LR * (change.scale * gradient(i, y) + change.shift)
            ends.append(y)
        return float(np.std(ends, axis=0).sum() / np.linalg.norm(np.mean(ends, axis=0)))

    assert spread(0.1) < spread(0.5) < spread(1.0)


def test_each_owner_has_one_vote_on_whether_its_update_goes_with_the_momentum() -> None:
    method, way = FedCM(ALPHA, 1.0), np.array([1.0, -2.0, 0.0], np.float32)

    def vote(*delta: float) -> float:
        update = Update(np.array(delta, np.float32), 1.0, {})
        return method.encode(update, {MOMENTUM: way}, RNG).metrics["fedcm/with"]

    assert [vote(*v) for v in ((1, 0, 0), (1e6, 0, 0), (-1e-6, 0, 0), (0, 0, 5), (0, 0, 0))] == [1, 1, 0, 0, 0]
    for size in (3e38, np.float32(3e38)):
        assert method.encode(Update(way, 1.0, {}), {MOMENTUM: way * 0 + size}, RNG).metrics["fedcm/with"] in (0, 1)
    row = method.row(Mean(way, 4, {"fedcm/with": 3.0}))
    assert row == {AGREEMENT: 0.75}
    assert set(row) == set(method.metrics)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("training.optimizer={type: adamw, lr: 0.1}",),
            PLAIN_SGD,
        ),
        (("training.optimizer.momentum=0.9",), PLAIN_SGD),
        (
            ("training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=9"),
            "training.local_steps is required with methods fedcm",
        ),
        (
            ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"),
            r"methods: fedcm cannot go with owners' state \(scaffold, feddyn\), got both",
        ),
        (("methods=[{type: fedcm}, {type: fedcm}]",), "methods: must name each once, got fedcm, fedcm"),
        (("aggregation.weighting=loss",), "aggregation.weighting: must not be loss with methods fedcm"),
        (("methods=[{type: fedcm, alpha: 0}]",), r"methods\.0\.alpha: .*greater than 0, got 0"),
        (("methods=[{type: scaffold}]",), "methods: scaffold comes with what aggregation says, got it by itself"),
        (("methods=[{type: fedmc}]",), r"methods\.0: unknown 'type' 'fedmc' \(did you mean 'fedcm'\?\)"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(
    run_config: Callable[..., RunConfig], overrides: tuple[str, ...], line: str
) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        run_config(*FEDCM, *overrides)
    assert "\n" not in str(caught.value)


def test_methods_of_users_have_one_order_whoever_registers_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums travel in it: two owners must not add up one's first with another's second."""
    shipped = list(registry.METHODS)
    names = ("b_method", "a_method", "c_method")
    kinds = [type(name, (Method,), {"name": name, "config": own_config(name)}) for name in names]
    monkeypatch.setattr(registry, "METHOD_CONFIGS", Registry(MethodConfig))
    for order in (kinds, kinds[::-1]):
        monkeypatch.setattr(registry, "METHODS", list(shipped))
        for kind in order:
            registry.register(kind)
        assert [one.name for one in registry.METHODS[len(shipped) :]] == ["a_method", "b_method", "c_method"]
        with pytest.raises(ConfigError, match="method: must have a new name, got 'a_method'"):
            registry.register(type("d_method", (Method,), {"name": "a_method", "config": own_config("a_method")}))
    with pytest.raises(ConfigError, match="AGFL-CONFIG-218"):
        registry.register(type("hidden", (Method,), {"name": "hidden"}))


def own_config(name: str) -> type[MethodConfig]:
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    config: type[MethodConfig] = create_model(f"{name}Config", __base__=MethodConfig, **fields)
    config.is_chosen = True
    return config
