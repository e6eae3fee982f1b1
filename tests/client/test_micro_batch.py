"""Out of memory on a device: fewer rows at a time, the same steps, and nothing kept of what did not fit."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.client.test_node import request_of
from tests.least_squares import LeastSquares, Points, work, zero_model
from tests.tiny_federation import plain_node
from torch import Tensor, nn

from agfl_client.training import trainer
from agfl_client.training.optimizers.local_optimizer import new_optimizer
from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import ConfigError
from agfl_models.examples import TextRow
from agfl_models.model.blocks import blocks_of
from agfl_models.model.families import build_model
from agfl_models.tasks.batch_rows import MicroBatch, num_rows
from agfl_models.tasks.language_modeling import LanguageModeling
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_protocol.update import Layout

MakeConfig = Callable[..., RunConfig]


@dataclass
class Device:
    """Has room for the activations of so many rows, forward, and of so many in a backward pass.

    robbed_from: the number of the forward pass, from 1, from which on another process has all but that of `left` rows.
    """

    room: int
    backward_room: int = 1 << 30
    robbed_from: int = 1 << 30
    left: int = 1
    passes: int = 0
    used: int = 0
    most: int = 0


class Lease:
    """Room that is taken for as long as this lives."""

    def __init__(self, device: Device, rows: int) -> None:
        self.device, self.rows = device, rows
        device.used += rows
        device.passes += 1
        if device.passes >= device.robbed_from:
            device.room = device.left
        if device.used > device.room:
            raise torch.OutOfMemoryError("forward")
        device.most = max(device.most, device.used)

    def __del__(self) -> None:
        self.device.used -= self.rows


class Leased(torch.autograd.Function):
    """The identity, whose graph holds a lease."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, lease: Lease) -> Tensor:
        ctx.lease = lease
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.lease.rows > ctx.lease.device.backward_room:
            raise torch.OutOfMemoryError("backward")
        return gradients[0], None


@dataclass
class OnDevice(LeastSquares):
    device: Device

    def loss(self, model: nn.Module, batch: Points) -> tuple[Tensor, int]:
        loss, count = super().loss(model, batch)
        leased = Leased.apply(loss, Lease(self.device, num_rows(batch)))  # type: ignore[no-untyped-call]
        return cast("Tensor", leased), count


OPTIMIZERS = (
    {"type": "sgd", "lr": 0.1, "momentum": 0.9},
    {"type": "adamw", "lr": 0.01},
    {"type": "delta_sgd"},
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: one["type"])
@pytest.mark.parametrize("batch_size", [1, 7, 16])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_fewer_rows_at_a_time_take_the_same_steps(
    optimizer: dict[str, Any], batch_size: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In float64, with rows that are no predictions and hence weigh nothing, and pieces that have none that weigh."""
    training: dict[str, Any] = {
        "optimizer": optimizer,
        "local_steps": 4,
        "batch_size": batch_size,
        "max_grad_norm": 1.0,
    }
    whole_model = zero_model()
    whole = BatchTrainer().train(work(whole_model, 3, **training))
    for room, expected in ((16, None), (6, {7: 3, 16: 4}), (3, {7: 3, 16: 2}), (1, {7: 1, 16: 1})):
        device = Device(room) if where == "forward" else Device(1 << 30, room)
        model, micro_batch = zero_model(), MicroBatch()
        caplog.clear()
        one = replace(work(model, 3, **training), task=cast("AnyTask", OnDevice(device)))
        got = BatchTrainer(micro_batch=micro_batch).train(one)
        assert torch.allclose(weights(model), weights(whole_model), rtol=1e-12, atol=1e-15)
        assert got.loss == pytest.approx(whole.loss, rel=1e-12)
        assert got.first_loss == pytest.approx(whole.first_loss, rel=1e-12)
        assert (got.num_predictions, got.num_steps) == (whole.num_predictions, 4)
        fits = expected is None or batch_size <= room
        # The largest half of a half that fits: what an attempt held was let go before the next one.
        assert micro_batch.max_rows == (None if fits else (expected or {})[batch_size])
        assert len(caplog.records) == (0 if fits else halvings(batch_size, room))
        assert device.used == 0


def halvings(rows: int, room: int) -> int:
    return 0 if rows <= room else 1 + halvings(rows // 2, room)


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters())


def test_a_batch_that_stops_fitting_halfway_counts_no_row_twice() -> None:
    """Its first two pieces have left gradients when the third one fails."""
    training: dict[str, Any] = {"optimizer": OPTIMIZERS[0], "local_steps": 2, "batch_size": 16}
    model, whole_model, micro_batch = zero_model(), zero_model(), MicroBatch(4)
    BatchTrainer().train(work(whole_model, **training))
    one = replace(work(model, **training), task=cast("AnyTask", OnDevice(Device(4, robbed_from=3))))
    BatchTrainer(micro_batch=micro_batch).train(one)
    assert micro_batch.max_rows == 1
    assert torch.allclose(weights(model), weights(whole_model), rtol=1e-12, atol=0)


def test_pieces_are_held_one_at_a_time() -> None:
    device = Device(4)
    one = work(zero_model(), optimizer=OPTIMIZERS[0], local_steps=3, batch_size=16)
    BatchTrainer().train(replace(one, task=cast("AnyTask", OnDevice(device))))
    assert device.most == 4


def test_what_does_not_fit_at_all_is_one_line_and_leaves_no_gradient() -> None:
    model, micro_batch = zero_model(), MicroBatch(1)
    one = work(model, optimizer=OPTIMIZERS[0], local_steps=3, batch_size=16)
    one = replace(one, task=cast("AnyTask", OnDevice(Device(1, robbed_from=3, left=0))))
    with pytest.raises(ConfigError) as caught:
        BatchTrainer(micro_batch=micro_batch).train(one)
    line = "--device: must have the memory to train this model on one row at a time, and has not [AGFL-CONFIG-262]"
    assert str(caught.value) == line
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_halved_where_several_processes_must_take_the_same_steps() -> None:
    micro_batch = MicroBatch()
    one = work(zero_model(), optimizer=OPTIMIZERS[0], local_steps=3, batch_size=16)
    one = replace(one, task=cast("AnyTask", OnDevice(Device(8))))
    with pytest.raises(ConfigError, match="AGFL-CONFIG-262"):
        BatchTrainer(total=lambda loss, predictions: (loss, predictions), micro_batch=micro_batch).train(one)
    assert micro_batch.max_rows is None


def test_an_owner_is_told_once_in_a_run_and_the_next_run_begins_with_whole_batches(
    run_config: MakeConfig,
    make_owners: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    genuine, seen = LanguageModeling.loss, list[int]()

    def cramped(task: LanguageModeling, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        seen.append(num_rows(batch))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return genuine(task, model, batch)

    monkeypatch.setattr(LanguageModeling, "loss", cramped)
    node, small = plain_node(make_owners(1) / "owner-00.jsonl"), run_config("training.local_steps=2")
    for number in (1, 2):
        node.handle_round(request_of(small, evaluate=False, number=number, exchange=number))
    assert seen == [4, 2, 2, 2, 2, *[2] * 4]
    line = "out of memory on cpu: training goes on with 2 rows of a batch at a time, and the same steps"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [line]
    seen.clear()
    node.handle_round(request_of(run_config("training.local_steps=1"), evaluate=False, exchange=3))
    assert seen == [4, 2, 2]


def test_where_one_row_is_too_much_blocks_are_computed_twice_and_the_steps_stay(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine, config = LanguageModeling.loss, run_config("training.local_steps=2", "training.batch_size=2")
    is_full = [False]

    def cramped(task: LanguageModeling, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        keeps_all = any("forward" not in vars(block) for block in blocks_of(model))
        if is_full[0] or keeps_all or num_rows(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return genuine(task, model, batch)

    def trained(micro_batch: MicroBatch) -> LocalResult:
        task, rng, model = config.build_task(), np.random.default_rng(0), build_model(config.model, 0)
        dataset = task.prepare([TextRow(text=f"the sea saw ship {number} and no man knew when") for number in range(9)])
        one = LocalWork(model, Layout.of(model), task, dataset, rng, config.training)
        return BatchTrainer(micro_batch=micro_batch).train(one)

    whole, found = trained(MicroBatch()), MicroBatch()
    monkeypatch.setattr(LanguageModeling, "loss", cramped)
    got = trained(found)
    assert found == MicroBatch(1, recomputes=True)
    assert np.allclose(got.delta, whole.delta, rtol=1e-4, atol=1e-6)
    assert got.loss == pytest.approx(whole.loss, rel=1e-5)
    ways = ("1 rows of a batch at a time", "what goes into each block kept, and the rest computed twice")
    lines = [f"out of memory on cpu: training goes on with {way}, and the same steps" for way in ways]
    assert [record.getMessage() for record in caplog.records] == lines
    is_full[0] = True
    with pytest.raises(ConfigError, match="AGFL-CONFIG-262"):
        trained(found)


@pytest.mark.parametrize("room", [9, 0])
def test_nothing_of_a_round_is_held_until_the_next(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither moments nor gradients, whether it ended well or not."""
    made = list[weakref.ref[Any]]()

    def noted(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = genuine(*arguments)
        made.append(weakref.ref(optimizer))
        return optimizer

    genuine = new_optimizer
    monkeypatch.setattr(trainer, "new_optimizer", noted)
    model = zero_model()
    one = work(model, optimizer={"type": "adamw", "lr": 0.1}, local_steps=2, batch_size=8)
    one = replace(one, task=cast("AnyTask", OnDevice(Device(room))))
    if room:
        BatchTrainer().train(one)
    else:
        with pytest.raises(ConfigError, match="AGFL-CONFIG-262"):
            BatchTrainer().train(one)
    gc.collect()
    assert [ref() for ref in made] == [None]
    assert all(parameter.grad is None for parameter in model.parameters())
