"""A step's rate follows from its number in the run alone: it is that of PyTorch's schedulers, at every owner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from tests.client.test_node import request_of
from tests.least_squares import Data, LeastSquares, work, zero_model
from tests.tiny_federation import plain_node
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.config.schedule_config import ScheduleConfig
from agfl_protocol.messages.wire import read_vector
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_protocol.plans.plan_fields import PlanViolation, check_fields

MakeConfig = Callable[..., RunConfig]
LR = 0.2
UNIFORM = "aggregation.weighting=uniform"
COSINE = {"type": "cosine", "steps": 11, "warmup_steps": 4, "floor": 0.25}
WARMUP = {"type": "warmup", "warmup_steps": 5}
SCHEDULES = [COSINE, {**COSINE, "warmup_steps": 0}, {"type": "cosine", "steps": 2, "warmup_steps": 1}, WARMUP]


def pytorchs(optimizer: torch.optim.Optimizer, schedule: dict[str, Any]) -> LRScheduler:
    """The same by PyTorch's own schedulers, up to the last step."""
    rise = schedule.get("warmup_steps", 0)
    linear = LinearLR(optimizer, 1 / max(rise, 1), total_iters=max(rise - 1, 0))
    if schedule["type"] == "warmup":
        return linear
    fall = CosineAnnealingLR(optimizer, schedule["steps"] - rise, LR * schedule.get("floor", 0.1))
    return SequentialLR(optimizer, [linear, fall], [rise]) if rise else fall


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_are_those_of_pytorch(schedule: dict[str, Any]) -> None:
    config: Any = TypeAdapter(ScheduleConfig).validate_python(schedule)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], LR)
    expected = pytorchs(optimizer, schedule)
    for step in range(schedule.get("steps", 20)):
        assert LR * config.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        optimizer.step()
        expected.step()
    last = schedule.get("floor", 0.1) if schedule["type"] == "cosine" else 1.0
    assert [config.factor(step) for step in (step + 1, 10**12)] == [pytest.approx(last, rel=1e-12)] * 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rounds_go_through_one_schedule(schedule: dict[str, Any]) -> None:
    """In float64, by hand; the model of a round is that with which the next begins, as if nobody else were there."""
    ours, by_hand, task = zero_model(), zero_model(), LeastSquares()
    optimizer = SGD(by_hand.parameters(), LR)
    expected = pytorchs(optimizer, schedule)
    training = {"optimizer": {"type": "sgd", "lr": LR}, "schedule": schedule, "local_steps": 2, "batch_size": 5}
    for number in range(1, schedule.get("steps", 20) // 2 + 1):
        BatchTrainer().train(work(ours, number, 2 * (number - 1), **training))
        rng = np.random.default_rng(number)
        for _ in range(2):
            loss, count = task.loss(by_hand, Data().sample(5, rng))
            optimizer.zero_grad()
            torch.autograd.backward(loss / max(count, 1))
            optimizer.step()
            expected.step()
        assert torch.allclose(weights(ours), weights(by_hand), rtol=1e-12, atol=0)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters())


@pytest.fixture
def sent(make_owners: Callable[..., Path]) -> Callable[..., NDArray[np.uint64]]:
    owner = make_owners(1) / "owner-00.jsonl"

    def lanes(config: RunConfig, number: int) -> NDArray[np.uint64]:
        reply = plain_node(owner).handle_round(request_of(config, evaluate=False, number=number))
        return read_vector(reply, "lanes", np.uint64)

    return lanes


def test_the_round_says_which_step_it_is(run_config: MakeConfig, sent: Callable[..., NDArray[np.uint64]]) -> None:
    """A node that has seen no round before, as after a restart, takes round 3 at the rate of round 3, to the bit."""
    schedule = f"training.schedule={json.dumps(COSINE)}"
    one_step = ("training.local_steps=1", "training.max_grad_norm=null")
    for number in (1, 3, 9):
        config = run_config(schedule, *one_step)
        lr = config.client_plan.training.lr_at(number - 1)
        constant = run_config(f"training.optimizer.lr={lr!r}", *one_step)
        assert np.array_equal(sent(config, number), sent(constant, number))
        assert not np.array_equal(sent(config, number), sent(run_config(*one_step), number))


def test_a_run_without_one_says_nothing_of_it(run_config: MakeConfig) -> None:
    """So it is the same run, and the same plan to the letter, as before there were schedules."""
    for text in (run_config().client_plan.to_json(), run_config().to_yaml()):
        assert "schedule" not in text


@pytest.mark.parametrize("schedule", [COSINE, WARMUP])
def test_the_plan_carries_it_and_pins_it(run_config: MakeConfig, schedule: dict[str, Any]) -> None:
    plan = run_config(f"training.schedule={json.dumps(schedule)}").client_plan
    assert client_plan_from_json(plan.to_json()) == plan
    for other in ({**schedule, "warmup_steps": 1}, WARMUP | {"warmup_steps": 6}):
        asked = run_config(f"training.schedule={json.dumps(other)}").client_plan
        with pytest.raises(PlanViolation, match=r"^training\.schedule.*AGFL-PLAN-021"):
            check_fields(plan.fields(), asked.fields())
    with pytest.raises(PlanViolation, match=r"^training\.schedule.*AGFL-PLAN-021"):
        check_fields(plan.fields(), run_config().client_plan.fields())


def test_fewer_rounds_change_no_step(run_config: MakeConfig) -> None:
    """A request may lower `num_rounds`, which must not be a way to ask at another rate."""
    rates = [
        [run_config(f"training.schedule={json.dumps(COSINE)}", f"num_rounds={n}").training.lr_at(i) for i in range(12)]
        for n in (2, 9)
    ]
    assert rates[0] == rates[1]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["training.schedule={type: cosine, steps: 4, warmup_steps: 4}"],
            "warmup_steps: must be below steps = 4, got 4 .AGFL-CONFIG-256",
        ),
        (
            ["training.schedule={type: cosine, steps: 4, floor: 0}"],
            r"training\.schedule\.floor: .* greater than 0, got 0 .AGFL-CONFIG-011",
        ),
        (
            ["training.optimizer={type: delta_sgd}"],
            "schedule: must be left out with optimizer delta_sgd, .* got warmup .AGFL-CONFIG-257",
        ),
        (
            ["training.local_steps=null", "training.local_epochs=2", "aggregation.max_weight=99"],
            "schedule: needs local_steps, .* got local_epochs 2 .AGFL-CONFIG-258",
        ),
        (
            ["methods=[{type: fedcm}]"],
            r"training\.schedule: must be left out with methods fedcm, .* got warmup .AGFL-CONFIG-259",
        ),
        (
            ["aggregation.server_optimizer={type: scaffold}", UNIFORM],
            r"training\.schedule: must be left out with .*scaffold, .* got warmup .AGFL-CONFIG-259",
        ),
        (
            ["aggregation.weighting=loss"],
            r"training\.schedule: must be left out with aggregation\.weighting loss, .*AGFL-CONFIG-261",
        ),
    ],
)
def test_what_has_one_rate_is_refused_by_name(run_config: MakeConfig, overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        run_config(f"training.schedule={json.dumps(WARMUP)}", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregation.server_optimizer={type: feddyn}", UNIFORM],
        ["aggregation.averaging=normalized"],
        ["elastic={widths: [0.5, 1.0]}"],
        ["training.optimizer={type: adamw, lr: 0.01}"],
    ],
)
def test_all_else_goes_with_it(run_config: MakeConfig, overrides: list[str]) -> None:
    run_config(f"training.schedule={json.dumps(COSINE)}", *overrides)
