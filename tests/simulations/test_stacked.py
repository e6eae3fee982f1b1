"""Owners that train together come to what each comes to alone; a run remembers that they do, or refuses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from rich.console import Console
from safetensors.numpy import load
from tests.simulations.run_result import result
from tests.simulations.test_own_parts import OWNERS, RUN, Line, StopsAfter
from torch import Tensor, nn

import agfl
from agfl_client.node import Node
from agfl_client.policy import PolicyViolation
from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import ConfigError
from agfl_models.model.base_config import FAMILIES, OwnModelConfig
from agfl_models.model.families import build_model
from agfl_models.tasks.config import TASKS
from agfl_models.tasks.own_task import Tensors
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_protocol.messages import wire
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.update import Layout
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.stacked import rendezvous
from agfl_sim.engines.stacked.loop import Training, train_together
from agfl_sim.engines.stacked.rendezvous import distance
from agfl_sim.engines.stacked.stacked_engine import StackedEngine, _Meeting
from agfl_sim.run import check_engine, kept_engine
from agfl_sim.whole_run import run_all

# A test makes errors of warnings, and this one says only that an operation takes one owner after the other.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

LAYERS = (
    "[{type: attention, num_heads: 2, num_kv_heads: 1}, {type: ff, hidden_dim: 24}, {type: rnn, cell: mingru}, "
    "{type: rnn, cell: gated_delta}, {type: attention, window: 3}]"
)
ENCODER = "[{type: attention, num_heads: 2}, {type: rnn, cell: mingru}]"  # both ways
SECURE = "aggregation={type: secure, server_optimizer: {type: nesterov}, max_colluders: 1, min_cohort: 3}"
SGD = "training.optimizer={type: sgd, lr: 0.05, momentum: 0.5, weight_decay: 0.1}"
UNIFORM = "aggregation={{type: plain, weighting: uniform, averaging: mean, server_optimizer: {{type: {}}}}}"
ADAMW = "training.optimizer={type: adamw, lr: 0.001}"
EPOCH = (
    "training.local_steps=null",
    "training.local_epochs=1",
    "training.batch_size=5",
    "aggregation.max_weight=2000",
)


@pytest.fixture
def wide() -> Iterator[None]:
    """Models are made in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def unequal(make_owners: Callable[..., Path]) -> list[Path]:
    """Five owners, of whom the first has 12 documents and the last 4."""
    paths = sorted(make_owners(5).iterdir())
    for number, path in enumerate(paths):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 12 - 2 * number]))
    return paths


def works_of(config: RunConfig, owners: Sequence[Sequence[Any]]) -> list[LocalWork]:
    """Return the work of owners with these rows, whose models are unlike each other, as they need not be."""
    plan = config.client_plan
    task, works = plan.build_task(), list[LocalWork]()
    for number, rows in enumerate(owners):
        own, rng = build_model(plan.model, seed=number), np.random.default_rng(number)
        works.append(LocalWork(own, Layout.of(own), task, task.prepare(rows), rng, plan.training, first_step=3))
    return works


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Tensor]]:
    """The weights with which each owner left a stack, by the id of its work: deltas are float32."""
    found: dict[int, dict[str, Tensor]] = {}
    genuine = Training._note_results

    def note_results(self: Training, leaving: Sequence[int]) -> None:
        for place in leaving:
            weights = {name: stack.detach()[place] for name, stack in zip(self._names, self._stack, strict=True)}
            found[id(self._owners[place].work)] = weights
        genuine(self, leaving)

    monkeypatch.setattr(Training, "_note_results", note_results)
    return found


def check_alike(works: list[LocalWork], trained: dict[int, dict[str, Tensor]]) -> list[int]:
    """Check that together each comes to what it comes to alone; return how many steps each made."""
    alike = [replace(one, model=deepcopy(one.model), rng=deepcopy(one.rng)) for one in works]
    for one, own, other in zip(works, alike, train_together(works), strict=True):
        alone = BatchTrainer().train(own)
        assert isinstance(other, LocalResult)
        for name, weight in own.model.named_parameters():
            assert weight.dtype == torch.float64
            assert float((weight.detach() - trained[id(one)][name]).abs().max()) <= 1e-9, name
        assert distance(alone, other) <= 1e-3  # of float32 numbers, of which a delta is a small difference
        assert np.abs(alone.delta).max() > 1e-5
        assert (alone.num_steps, alone.num_predictions) == (other.num_steps, other.num_predictions)
        assert [other.loss, other.first_loss] == pytest.approx([alone.loss, alone.first_loss], rel=1e-9)
    return [len(list(one.batches())) for one in works]


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "settings",
    [(SGD, "training.proximal_mu=0.5"), (SGD, "training.max_grad_norm=null", *EPOCH), (ADAMW, *EPOCH)],
    ids=["sgd, clipped", "sgd, an epoch", "adamw, an epoch"],
)
def test_owners_of_unequal_sizes_come_together_to_what_each_comes_to_alone(
    settings: tuple[str, ...],
    run_config: Callable[..., RunConfig],
    unequal: list[Path],
    trained: dict[int, dict[str, Tensor]],
) -> None:
    config = run_config(f"model.layers={LAYERS}", *settings)
    steps = check_alike(works_of(config, [config.task.read(path)[0] for path in unequal]), trained)
    assert len(set(steps)) == (5 if EPOCH[0] in settings else 1), steps


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("task", "model", "row"),
    [
        (
            "{type: text_classification, labels: [a, b], sequence_length: 24}",
            "{family: encoder, vocab_size: 259, dim: 16, head: {type: classification, num_classes: 2}, "
            f"layers: {ENCODER}}}",
            lambda text, i: {"text": text, "label": "ab"[i % 2]},
        ),
        (
            "{type: question_answering, context_length: 64}",
            "{family: encoder, vocab_size: 259, type_vocab_size: 3, dim: 16, head: {type: span}, "
            f"layers: {ENCODER}}}",
            lambda text, i: {"context": text, "question": "who?", "answers": {"text": [text[:3]], "answer_start": [0]}},
        ),
        (
            "{type: translation, source_length: 24, target_length: 12}",
            f"{{family: encoder_decoder, vocab_size: 259, dim: 16, encoder: {{layers: {ENCODER}}}, "
            "layers: [{type: attention}, {type: attention, cross: true}]}",
            lambda text, i: {"source": text, "target": text[::-1]},
        ),
    ],
    ids=["text_classification", "question_answering", "translation"],
)
def test_what_pads_batches_of_unequal_lengths_counts_for_nothing(
    task: str,
    model: str,
    row: Callable[[str, int], dict[str, Any]],
    run_config: Callable[..., RunConfig],
    trained: dict[int, dict[str, Tensor]],
) -> None:
    config = run_config(f"task={task}", f"model={model}", SGD, *EPOCH)
    texts = [["she saw a ship " * (1 + (owner + i) % 4) + str(i) for i in range(4 + 2 * owner)] for owner in range(3)]
    check_alike(
        works_of(config, [[config.task.row(**row(text, i)) for i, text in enumerate(own)] for own in texts]), trained
    )


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("secure", "masks"), [(False, True), (True, True), (True, False)])
def test_a_round_ends_with_the_model_of_one_by_one(
    secure: bool, masks: bool, run_config: Callable[..., RunConfig], unequal: list[Path], tmp_path: Path
) -> None:
    config = run_config("num_rounds=1", SGD, *((SECURE,) if secure else EPOCH))
    InlineEngine(config, unequal, "cpu", simulate_masks=masks).run(tmp_path / "a", resume=False, observer=Observer())
    # Groups of three and two, both at once.
    engine = StackedEngine(config, unequal, "cpu", 2, simulate_masks=masks, size=3)
    engine.run(tmp_path / "b", resume=False, observer=Observer())
    (weights, *noted), (others, *others_noted) = result(tmp_path / "a"), result(tmp_path / "b")
    for name, value in load(weights).items():
        assert np.abs(value - load(others)[name]).max() <= 1e-9
    assert noted == others_noted  # metrics are integers in the sum
    assert (tmp_path / "a" / "config.yaml").read_bytes() == (tmp_path / "b" / "config.yaml").read_bytes()


def test_owners_that_refuse_or_fail_hold_up_nobody(
    run_config: Callable[..., RunConfig],
    unequal: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One before it comes to train, one while it trains; and the first of the others is compared with itself alone."""
    genuine, met = Node.handle_round, list[int]()

    def handle_round(self: Node, request: RoundRequest) -> Any:
        if self.name == "owner-01":
            raise PolicyViolation("AGFL-POLICY-009", "not today")
        return genuine(self, request)

    def train(works: list[LocalWork]) -> list[LocalResult | Exception]:
        met.append(len(works))
        return [*train_together(works)[:-1], ConfigError("AGFL-CONFIG-231", "no batch")]

    monkeypatch.setattr(Node, "handle_round", handle_round)
    monkeypatch.setattr(rendezvous, "train_together", train)
    caplog.set_level(logging.INFO, "agfl")
    config = run_config("num_rounds=1", "aggregation.min_cohort=3", "evaluation.every=5")
    StackedEngine(config, unequal, "cpu", 1, size=5).run(tmp_path, resume=False, observer=Observer())
    assert met[0] == 4
    (line,) = [line for line in caplog.messages if "trained alone" in line]
    assert float(line.partition("differs by ")[2].split()[0]) < 1e-5


def test_a_run_goes_on_stacked_as_it_began_and_no_other_way(
    config_file: Path, make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    console, owners = Console(quiet=True), make_owners(3)

    def run(name: str, rounds: int, **how: Any) -> None:
        config = load_run_config(config_file, (f"num_rounds={rounds}", f"data.path={owners}"))
        run_all(config, tmp_path / name, console, device="cpu", **how)

    run("whole", 2, engine="stacked:2")
    with pytest.raises(KeyboardInterrupt):
        run("parts", 2, engine="stacked:2", callbacks=[StopsAfter(1)])
    for other in ("inline", "stacked:3", "stacked"):
        with pytest.raises(ConfigError, match=rf"^--engine: must be stacked:2, as the run began, got {other} \["):
            run("parts", 2, engine=other, resume=True)
    run("parts", 2, resume=True)  # auto
    assert result(tmp_path / "parts") == result(tmp_path / "whole")
    assert kept_engine(tmp_path / "parts", "auto") == "stacked:2"
    with pytest.raises(ConfigError, match="must be one without a stack, as the run began, got stacked:2"):
        kept_engine(tmp_path / "elsewhere", "stacked:2")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.layers=[{type: rnn, cell: lstm}]", "a layer rnn with cell lstm"),
        ("training.optimizer={type: delta_sgd}", "training.optimizer delta_sgd"),
        (
            UNIFORM.format("scaffold"),
            "method scaffold",
        ),
        (
            UNIFORM.format("feddyn"),
            "method feddyn",
        ),
        ("elastic={widths: [0.5, 1]}", "elastic"),
    ],
)
def test_a_setting_that_cannot_be_stacked_is_refused_by_name(
    setting: str, named: str, run_config: Callable[..., RunConfig], make_owners: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=f"--engine stacked: must be left out with {named}") as refused:
        StackedEngine(run_config(setting), sorted(make_owners(3).iterdir()), "cpu", size=2)
    assert refused.value.code == "AGFL-CONFIG-277"


@pytest.mark.parametrize("engine", ["stacked:1", "stacked:257", "stacked:", "stacked:two"])
def test_a_number_of_owners_that_is_none_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match="--engine: stacked must have a number of owners from 2 to 256"):
        check_engine(engine, "--engine")


def test_too_little_memory_is_one_line_and_no_other_way_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(works: list[LocalWork]) -> list[LocalResult | Exception]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rendezvous, "train_together", train)
    together = rendezvous.Together(8, 1)
    (seat,) = together.seats(1)
    with together.at(seat), pytest.raises(ConfigError, match="--engine stacked:8: must have the memory to train so"):
        together.train(cast(LocalWork, None))


class Net(OwnModelConfig):
    """dropout: whose randomness would not be an owner's own; is_sum: with weights that have a gradient together."""

    family: Literal["net"] = "net"
    dropout: float = 0.0
    is_sum: bool = False

    def build(self) -> nn.Module:
        rate = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(nn.Linear(1, 4), *rate, Summed() if self.is_sum else nn.Linear(4, 1))


class Summed(nn.Module):
    """PyTorch's gradient of `first` is that of `second`, and of `offset` one number for all its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(4, 1)) for _ in range(2))
        self.offset = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.first + self.second) + self.offset.sum()


class Wide(Line):
    """Padded with ones to an owner's longest row, which only it knows: `x` has a place for each of its points."""

    def collate(self, rows: Sequence[Any]) -> Tensors:
        x, y = super().collate(rows)
        return x.expand(-1, len(rows)), y

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        return super().loss(model, (batch[0].mean(dim=1, keepdim=True), batch[1]))


@pytest.mark.parametrize(
    ("task", "model", "is_stacked"),
    [
        (Line(), Net(), True),
        (Line(), Net(is_sum=True), True),
        (Line(), Net(dropout=1e-9), False),
        (Wide(), Net(), False),
    ],
    ids=["stacked", "a gradient of two", "dropout", "unequal shapes"],
)
def test_a_module_of_ones_own_is_stacked_or_trained_one_by_one_with_a_line(
    task: Line,
    model: Net,
    is_stacked: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With gradients that are clipped, as they are if nobody says otherwise."""
    for registry in (TASKS, FAMILIES):  # as they were, afterwards
        monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
        monkeypatch.setattr(registry, "_types", dict(registry._types))
    caplog.set_level(logging.INFO, "agfl")
    for engine in ("inline", "stacked"):
        agfl.simulate(
            RUN,
            task=task,
            model=model,
            owners={name: rows[: 9 + i] for i, (name, rows) in enumerate(OWNERS.items())},
            out=tmp_path / engine,
            engine=engine,
            progress=False,
            settings={
                "num_rounds": 2,
                "training.local_steps": None,
                "training.local_epochs": 1,
                "training.max_grad_norm": 0.05,
                "aggregation.max_weight": 50,
            },
        )
    models = [load(result(tmp_path / engine)[0]) for engine in ("inline", "stacked")]
    apart = max(float(np.abs(models[0][name] - models[1][name]).max()) for name in models[0])
    assert (apart < 1e-5) if is_stacked else (apart == 0)
    told = [
        line.partition(";")[0].partition(" where")[0] for line in caplog.messages if line.startswith("owners train")
    ]
    assert told == ["owners train 16 at a time" if is_stacked else "owners train one at a time"]


class Meeting(_Meeting):
    """Three nodes that do nothing but train; the third cannot be asked where `is_cut`."""

    is_cut = False

    def _deliver(self, message: Message, message_id: str) -> Message:
        self.together.train(cast(LocalWork, None))
        return message

    def _submit(self, message: Message, message_id: str) -> Future[Message]:
        if self.is_cut and message.metadata.dst_node_id == 3:
            raise KeyboardInterrupt
        return super()._submit(message, message_id)


@pytest.mark.timeout(20)  # else for ever
@pytest.mark.parametrize("is_cut", [False, True])
def test_nobody_waits_for_ever_for_a_module_that_leaves_python_or_for_who_was_not_asked(
    is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(works: Sequence[LocalWork]) -> list[LocalResult | Exception]:
        raise SystemExit(3)

    monkeypatch.setattr(rendezvous, "train_together", train)
    grid = Meeting({}, [1, 2, 3], 3, is_secure=False)
    grid.together, grid.is_cut = rendezvous.Together(3, 1), is_cut
    with pytest.raises(KeyboardInterrupt if is_cut else SystemExit):
        ask_all(grid)


def ask_all(grid: Meeting) -> None:
    """Ask the three nodes, and wait for the first that answers."""
    with grid:
        asked = list(grid.push_messages([Message(RecordDict(), node, wire.TRAIN) for node in (1, 2, 3)]))
        while not (replies := list(grid.pull_messages(asked))):
            grid.clock.wait(0.1, 0.1)
        raise AssertionError(replies)
