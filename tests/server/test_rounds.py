"""Rounds over real nodes: what a bad client sends is refused by name and changes nothing; the rest goes on."""

from __future__ import annotations

import json
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_federation import plain_node

from agfl_client.app import create_client_app
from agfl_client.training.evaluation import evaluate
from agfl_models.errors import ConfigError, RoundError
from agfl_models.examples import TextRow, read_rows
from agfl_models.model.families import build_model
from agfl_models.tasks.evaluation import HeldOut
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.optimizers.momentum import Momentum
from agfl_protocol.optimizers.server_optimizer import OptimizerState
from agfl_protocol.plans.plan import Plan
from agfl_protocol.randomness import OwnerRandomness
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.update import Layout, Mean, Vector
from agfl_protocol.version import PROTOCOL_VERSION
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.aggregation.plain_sum import PlainSum
from agfl_server.app import build_aggregator, run_federation
from agfl_server.rounds import loop
from agfl_server.rounds.attempts import RunContext
from agfl_server.rounds.cohort_sums import DivergedError, Federation, sum_of_cohort, sum_of_round
from agfl_server.rounds.journal import Journal, Records
from agfl_server.rounds.loop import train_round
from agfl_server.rounds.observer import Observer, Row
from agfl_server.rounds.sampling import sample_cohort
from agfl_server.rounds.state import ServerState, initial_state
from agfl_server.run import opened_run
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_sim.engines.grid import InProcessGrid

MakeConfig = Callable[..., RunConfig]
MakeOwners = Callable[..., Path]
OpenGrid = Callable[..., InProcessGrid]
RunOne = Callable[..., tuple[ServerState, "Recorder"]]
Answer = Callable[[Message], Message]
Fault = Callable[[Answer, Message], Message]
BAD, RUN_ID = "owner-01", "0123abcd"


class Faulty(ClientApp):
    """A real ClientApp whose answers to rounds pass through a fault."""

    def __init__(self, app: ClientApp, fault: Fault) -> None:
        super().__init__()
        self.app, self.fault = app, fault

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != wire.TRAIN:
            return self.app(message, context)
        return self.fault(lambda request: self.app(request, context), message)


class Recorder(Observer):
    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []
        self.repetitions: list[tuple[int, int, str]] = []
        self.divergences: list[int] = []

    def refused(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))

    def diverged(self, owners: int) -> None:
        self.divergences.append(owners)

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        self.repetitions.append((round_number, exchange, reason))


def start(
    config: RunConfig, grid: InProcessGrid, folder: Path, registered: Callable[[int], str | None] | None = None
) -> tuple[Federation, ServerState, Recorder]:
    observer, optimizer = Recorder(), build_optimizer(config.aggregation.server_optimizer)
    layout, state = initial_state(config, optimizer, RUN_ID)
    aggregator, min_cohort = build_aggregator(config.aggregation, None, observer)
    journal = Journal(folder)
    journal.begin(RUN_ID)
    context = RunContext(
        config=config,
        grid=grid,
        nodes=ConnectedNodes(grid, observer, registered),
        aggregator=aggregator,
        observer=observer,
        min_cohort=min_cohort,
        journal=journal,
        plan=Plan.of(config.client_plan, RUN_ID, ["owner-00", BAD], min_cohort),
    )
    methods = methods_of(Round(config.client_plan, config=config))
    return Federation(context, config.build_task(), layout, optimizer, sum_of_round, methods), state, observer


def altered(change: Callable[[wire.RoundReply], wire.RoundReply]) -> Fault:
    """The reply of a real node, changed before it is sent."""

    def fault(answer: Answer, message: Message) -> Message:
        request = wire.RoundRequest.from_record(message.content)
        lanes = answer(message).content.array_records["arrays"]["lanes"].numpy()
        reply = wire.RoundReply(request.client_plan_hash, request.round, request.exchange, lanes)
        return Message(change(reply).to_record(), reply_to=message)

    return fault


def with_lane(index: int, value: int) -> Fault:
    def changed(lanes: Lanes) -> Lanes:
        return np.array([*lanes[:index], value, *lanes[index:][1:]], np.uint64)

    return altered(lambda r: replace(r, lanes=changed(r.lanes)))


def with_version(answer: Answer, message: Message) -> Message:
    reply = answer(message)
    reply.content.config_records["config"]["version"] = PROTOCOL_VERSION + 1
    return reply


def with_nan_model(answer: Answer, message: Message) -> Message:
    request = wire.RoundRequest.from_record(message.content)
    message.content = replace(request, model=request.model * np.float32(np.nan)).to_record()
    return answer(message)


def refuse(answer: Answer, message: Message) -> Message:
    return Message(Error(100, "no power"), reply_to=message)


FAULTS: dict[str, tuple[Fault, str]] = {
    "error": (refuse, "no power"),
    "shape": (altered(lambda r: replace(r, lanes=r.lanes[:-1])), "lanes: must be uint64 of shape"),
    "two dimensions": (altered(lambda r: replace(r, lanes=r.lanes[None])), "lanes: must be uint64 of shape"),
    "dtype": (altered(lambda r: replace(r, lanes=r.lanes.view(np.int64))), "lanes: must be uint64 of shape"),
    "hash": (altered(lambda r: replace(r, client_plan_hash="0" * 64)), "client_plan_hash: must be"),
    "round": (altered(lambda r: replace(r, round=r.round + 1)), "round: must be 1 as in the request, got 2"),
    "exchange": (altered(lambda r: replace(r, exchange=5)), "exchange: must be 1 as in the request, got 5"),
    "version": (
        with_version,
        f"version: this side speaks protocol {PROTOCOL_VERSION}, the other side {PROTOCOL_VERSION + 1}",
    ),
    "no round": (lambda a, m: Message(wire.acknowledgment(), reply_to=m), "client_plan_hash: must be a str"),
    "count": (with_lane(0, 2), "count: must be 1, got 2"),
    "no count": (with_lane(0, 0), "count: must be 1, got 0"),
    "weight": (with_lane(1, 2**20 + 1), "weight: must be in (0, 1], got 1.00000"),
    "no weight": (with_lane(1, 0), "weight: must be in (0, 1], got 0"),
    "metric": (with_lane(2, 2**63), "metric train/nll: must be below"),
    "wrapping metric": (with_lane(3, 2**64 - 2**30), "metric train/tokens: must be below"),
    "field": (with_lane(-1, 2**32 - 1), "lanes: every field must be at most 107374182"),
    "upper field": (with_lane(-1, 2**64 - 2**32), "lanes: every field must be at most 107374182"),
}


@pytest.fixture
def run_one(run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path) -> RunOne:
    """Train one round of `count` owners, BAD with `fault`, each time in a run of its own."""

    def run(fault: Fault | None, *overrides: str, count: int = 4, num_workers: int = 1) -> tuple[ServerState, Recorder]:
        wrap = {} if fault is None else {BAD: lambda app: Faulty(app, fault)}
        grid = open_grid(make_owners(count), wrap, num_workers)
        federation, state, observer = start(run_config(*overrides), grid, tmp_path / "run")
        state, _ = train_round(federation, state, evaluate=False)
        return state, observer

    return run


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_reply_is_refused_by_name_and_changes_nothing(run_one: RunOne, kind: str) -> None:
    fault, reason = FAULTS[kind]
    state, observer = run_one(fault)
    assert (state.row["clients"], state.row["refused"]) == (3, 1)
    assert [name for name, _ in observer.refusals] == [BAD]
    assert reason in observer.refusals[0][1]
    without, _ = run_one(refuse)
    assert state.model.tobytes() == without.model.tobytes()
    assert state.row["train/loss"] == without.row["train/loss"]


def test_an_owner_whose_training_diverges_adds_nothing_and_is_not_named(run_one: RunOne) -> None:
    state, observer = run_one(with_nan_model)
    assert (state.row["clients"], state.row["refused"]) == (3, 0)
    assert (observer.divergences, observer.refusals) == ([1], [])
    without, _ = run_one(refuse)
    np.testing.assert_allclose(state.model, without.model, rtol=0, atol=2e-6)
    assert state.row["train/loss"] == without.row["train/loss"]


def test_a_round_in_which_too_few_stay_finite_is_not_repeated_and_says_how_many(run_one: RunOne) -> None:
    reason = "updates and losses must be finite for at least min_cohort = 3 owners, are not for 1 of 3"
    rule = rf"^round 1: failed in 1 attempt, because {reason} \("
    with pytest.raises(DivergedError, match=rule):
        run_one(with_nan_model, "aggregation.min_cohort=3", count=3)


def test_a_step_of_the_server_that_leaves_the_numbers_ends_the_run(
    run_one: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is made to: at which rate one overflows, and whether owners do before it, depends on the processor."""

    def step(self: Momentum, model: Vector, mean: Mean, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        return np.where(np.arange(model.size) == 5, np.float32(np.inf), model), state

    monkeypatch.setattr(Momentum, "step", step)
    with pytest.raises(DivergedError, match=r"AGFL-ROUND-021"):
        run_one(None)


def test_silent_node_is_missed_by_name(run_one: RunOne) -> None:
    heard = threading.Event()

    def silent(answer: Answer, message: Message) -> Message:
        heard.wait(30)
        return answer(message)

    try:
        state, observer = run_one(silent, "aggregation.round_timeout_s=2", num_workers=2)
    finally:
        heard.set()
    assert (state.row["clients"], state.row["refused"]) == (3, 1)
    assert observer.refusals == [(BAD, "no reply within 2 s")]


def test_round_is_repeated_while_too_few_reply_and_is_then_the_same(run_one: RunOne) -> None:
    """Of a plain sum the server sees all vectors anyway: it asks again under the same number."""
    exchanges: list[object] = []

    def not_at_first(answer: Answer, message: Message) -> Message:
        exchanges.append(message.content.config_records["config"]["exchange"])
        return refuse(answer, message) if len(exchanges) == 1 else answer(message)

    state, observer = run_one(not_at_first, "aggregation.min_cohort=3", count=3)
    ((number, exchange, reason),) = observer.repetitions
    assert (number, exchange) == (1, 1)
    assert exchanges == [1, 1]
    assert reason == f"updates: must be at least min_cohort = 3, got 2; {BAD}: no power [AGFL-ROUND-013]"
    assert (state.row["clients"], state.row["refused"]) == (3, 0)
    undisturbed, _ = run_one(None, "aggregation.min_cohort=3", count=3)
    assert state.model.tobytes() == undisturbed.model.tobytes()


def test_round_that_fails_for_good_says_who_and_why(run_one: RunOne) -> None:
    exchanges: list[object] = []

    def count(answer: Answer, message: Message) -> Message:
        exchanges.append(message.content.config_records["config"]["exchange"])
        return refuse(answer, message)

    rule = rf"^round 1: failed in 4 attempts, the last because updates: .* got 1; {BAD}: no power .AGFL-ROUND-013"
    with pytest.raises(RoundError, match=rule):
        run_one(count, "aggregation.max_attempts=4", count=2)
    assert exchanges == [1, 1, 1, 1]


def test_owner_whose_data_is_bad_does_not_end_a_run_in_which_others_can_take_its_place(run_one: RunOne) -> None:
    state, observer = run_one(refuse, "aggregation.min_cohort=3", "aggregation.cohort_size=3", count=5)
    assert [(number, exchange) for number, exchange, _ in observer.repetitions] == [(1, 1)]
    assert observer.refusals == [(BAD, "no power")]
    assert (state.row["clients"], state.row["refused"]) == (3, 0)


class Betrayed(PlainSum):
    """One owner is proven to have broken the protocol."""

    def sum(
        self,
        grid: Grid,
        cohort: Mapping[str, int],
        request: wire.SumRequest,
        codec: LaneCodec,
        timeout_s: float,
        groups: Groups = (),
        records: Records | None = None,
    ) -> CohortSum:
        raise AttemptFailed("AGFL-ROUND-000", f"{BAD}: lied", {BAD: "lied"}, frozenset({BAD}))


@pytest.mark.parametrize(("num_owners", "attempts"), [(2, 1), (3, 3), (None, 3)])
def test_who_broke_the_protocol_is_not_waited_for_where_too_few_others_can_come(
    run_config: MakeConfig,
    make_owners: MakeOwners,
    open_grid: OpenGrid,
    tmp_path: Path,
    num_owners: int | None,
    attempts: int,
) -> None:
    federation, state, observer = start(run_config("aggregation.min_cohort=2"), open_grid(make_owners(3)), tmp_path)
    context = replace(federation.context, num_owners=num_owners, aggregator=Betrayed(observer, 2))
    with pytest.raises(RoundError, match=rf"^round 1: failed in {attempts} attempts?, (the last )?because {BAD}: lied"):
        train_round(replace(federation, context=context), state, evaluate=False)
    assert len(observer.repetitions) == attempts


@pytest.mark.parametrize("least", ["null", "4"])
def test_a_run_does_not_wait_for_owners_that_there_are_not(run_config: MakeConfig, tmp_path: Path, least: str) -> None:
    config = run_config(f"aggregation={{type: plain, min_cohort: {least}}}")
    roster = SigningRoster({"a": Ed25519PrivateKey.generate().public_key()})
    rule = r"^aggregation\.min_cohort: .*got [24].*AGFL-CONFIG-071"
    with InProcessGrid({}, 1) as grid, pytest.raises(ConfigError, match=rule):
        run_federation(grid, config, tmp_path / "run", roster=roster)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", ["training.local_steps=200", "evaluation.max_examples=513"])
def test_weights_by_alignment_are_refused_where_every_owner_would(
    run_config: MakeConfig, tmp_path: Path, more: str
) -> None:
    config = run_config("aggregation={type: secure, weighting: alignment, server_optimizer: {type: fedavg}}", more)
    roster = SigningRoster({name: Ed25519PrivateKey.generate().public_key() for name in "abcde"})
    rule = r"^aggregation\.weighting: .*exact sum.*AGFL-PLAN-007"
    with InProcessGrid({}, 1) as grid, pytest.raises(ConfigError, match=rule):
        run_federation(grid, config, tmp_path / "run", roster=roster)
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize(
    ("aggregation", "least"),
    [
        ("{type: plain, cohort_size: 1}", 2),
        ("{type: plain, cohort_size: 2, min_cohort: 3}", 3),
        ("{type: secure, cohort_size: 3}", 4),
        ("{type: secure, cohort_size: 4, max_colluders: 2}", 5),
    ],
)
def test_cohorts_that_are_too_small_for_a_round_are_refused_before_anybody_is_asked(
    run_config: MakeConfig, tmp_path: Path, aggregation: str, least: int
) -> None:
    config = run_config(f"aggregation={aggregation}")
    roster = SigningRoster({name: Ed25519PrivateKey.generate().public_key() for name in "abcde"})
    rule = rf"^aggregation\.cohort_size: .*{least}, got {least - 1} \[AGFL-CONFIG-073\]$"
    with InProcessGrid({}, 1) as grid, pytest.raises(ConfigError, match=rule):
        run_federation(grid, config, tmp_path / "run", roster=roster)
    assert not (tmp_path / "run").exists()


class CountingGrid(InProcessGrid):
    """Hands out replies once all are there, and knows how many of those it handed out are still alive."""

    def __init__(self, nodes: dict[int, ClientApp]) -> None:
        super().__init__(nodes, 1)
        self.alive: list[weakref.ref[Message]] = []
        self.most = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for _, future in self._pending.values():
            future.result()
        replies = list(super().pull_messages(message_ids))
        self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(reply) for reply in replies]
        self.most = max(self.most, len(self.alive))
        return replies


def test_server_holds_a_few_replies_whatever_the_cohort(
    run_config: MakeConfig, make_owners: MakeOwners, tmp_path: Path
) -> None:
    most = {}
    for count in (8, 24):
        paths = sorted(make_owners(count).iterdir())
        grid = CountingGrid({i: create_client_app(plain_node(path)) for i, path in enumerate(paths)})
        with grid:
            federation, state, _ = start(run_config(), grid, tmp_path)
            _, _, result = sum_of_cohort(federation, state, train=True, evaluate=False)
        assert len(result.survivors) == count
        most[count] = grid.most
    assert most[8] == most[24] <= 5


def test_node_under_another_name_than_registered_is_refused(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    registered = {1000: "owner-00", 1001: "carol", 1002: "owner-02"}.get  # the transport does not know 1003
    federation, state, observer = start(run_config(), open_grid(make_owners(4)), tmp_path, registered)
    state, _ = train_round(federation, state, evaluate=False)
    assert observer.refusals == [
        ("node 1001", f"name: must be 'carol' as registered, got '{BAD}'"),
        ("node 1003", "name: must be None as registered, got 'owner-03'"),
    ]
    assert (state.row["clients"], state.row["refused"]) == (2, 0)


@given(st.integers(1, 9), st.integers(0, 99), st.permutations(range(9)))
def test_cohort_depends_on_names_and_round_only(size: int, number: int, ids: list[int]) -> None:
    cohort = sample_cohort({f"owner-{i}": i for i in range(9)}, size, 7, number)
    assert [list(cohort), len(cohort)] == [sorted(set(cohort)), size]
    others = {f"owner-{i}": 1000 - i for i in ids}  # other node ids, and they connected in another order
    assert sample_cohort(others, size, 7, number) == {name: others[name] for name in cohort}


@given(st.integers(1, 9), st.integers(0, 99), st.sets(st.sampled_from(range(9))))
def test_whoever_was_refused_is_drawn_only_if_too_few_others_are_there(
    size: int, number: int, refused: set[int]
) -> None:
    nodes = {f"owner-{i}": i for i in range(9)}
    cohort = sample_cohort(nodes, size, 7, number, {f"owner-{i}" for i in refused})
    if size > 9 - len(refused):
        assert cohort == sample_cohort(nodes, size, 7, number)
    else:
        assert not refused & set(cohort.values())
        assert len(cohort) == size
    assert sample_cohort(nodes, None, 7, number, {"owner-0"}) == nodes


def test_every_owner_is_drawn_as_often() -> None:
    nodes = {f"owner-{i}": i for i in range(8)}
    drawn = Counter(name for number in range(1, 1601) for name in sample_cohort(nodes, 3, 7, number))
    assert all(abs(drawn[name] - 600) < 4 * (600 * 5 / 8) ** 0.5 for name in nodes), drawn


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_evaluation_rides_in_the_next_sum_and_every_round_has_its_row(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    config, owners, asked = run_config(), make_owners(3), list[object]()

    def note(answer: Answer, message: Message) -> Message:
        asked.append(message.content.config_records["config"]["evaluate"])
        return answer(message)

    grid = open_grid(owners, {BAD: lambda app: Faulty(app, note)})
    last = run_federation(grid, config, tmp_path / "run")
    assert asked == [True, False, True]  # evaluation.every = 2; after the last round it travels alone
    rows = rows_of(tmp_path / "run")
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert [row["eval/loss"] is not None for row in rows] == [True, False, True, True]
    _, first, _ = start(config, grid, tmp_path / "other")
    model, task = build_model(config.model, seed=0), config.build_task()
    for row, state in ((rows[0], first), (rows[3], last)):
        Layout.of(model).load(model, state.model)
        totals: Counter[str] = Counter()
        for path in owners.iterdir():
            # What rides along is on examples that the owner draws in that exchange; at the end it is on all of them.
            drawn = OwnerRandomness.of_seed(7, path.stem).generator(RUN_ID, 1, "evaluation") if state is first else None
            totals.update(evaluate(model, HeldOut(task, task.prepare(read_rows(path, TextRow)), 4, 8, rng=drawn)))
        assert row["eval/loss"] == pytest.approx(totals["eval/nll"] / totals["eval/tokens"], rel=1e-6)
        metrics = task.eval_metrics({name: totals[name] for name in task.eval_sums})
        assert row["eval/bits_per_byte"] == pytest.approx(metrics["eval/bits_per_byte"], rel=1e-6)


def test_the_model_that_a_run_begins_with_is_let_go_of_after_round_1(
    run_config: MakeConfig,
    make_owners: MakeOwners,
    open_grid: OpenGrid,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be in memory, beside the one under way, as long as the run."""
    first: list[weakref.ref[Vector]] = []
    alive: list[bool] = []

    def begin(*arguments: Any) -> tuple[Layout, ServerState]:
        layout, state = initial_state(*arguments)
        first.append(weakref.ref(state.model))
        return layout, state

    def train(*arguments: Any) -> tuple[ServerState, Row]:
        alive.append(first[0]() is not None)
        return train_round(*arguments)

    monkeypatch.setattr(opened_run, "initial_state", begin)
    monkeypatch.setattr(loop, "train_round", train)
    run_federation(open_grid(make_owners(3)), run_config("num_rounds=3"), tmp_path / "run")
    assert alive == [True, False, False]
