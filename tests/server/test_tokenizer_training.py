"""A tokenizer that a federation learns is the one that all its training text in one place would teach."""

from __future__ import annotations

import json
import logging
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_models.errors import CheckpointError, ConfigError, RoundError
from agfl_models.examples import TextRow, read_rows, write_rows
from agfl_models.files.store import load_model
from agfl_models.tokenizers.bpe import train_bpe
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig, Pair, Tokenizer
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT, CountRequest
from agfl_protocol.plans.plan import Plan
from agfl_protocol.secagg.lanes import Lanes
from agfl_server.aggregation.aggregator import Aggregator, AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.app import build_aggregator, run_federation
from agfl_server.cli import LogObserver
from agfl_server.rounds.attempts import RunContext
from agfl_server.rounds.journal import Journal, Records
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.tokenizer_training import train_tokenizer
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.inline_engine import InlineEngine

MakeConfig = Callable[..., RunConfig]
MakeOwners = Callable[..., Path]
OpenGrid = Callable[..., InProcessGrid]
Answer = Callable[[Message], Message]
Fault = Callable[[Answer, Message, CountRequest], Message]
BAD = "owner-01"
VOCAB = 290


def bpe(merges_per_round: int, vocab_size: int = VOCAB) -> tuple[str, ...]:
    tokenizer = f"{{type: bpe, vocab_size: {vocab_size}, merges_per_round: {merges_per_round}}}"
    return f"model.vocab_size={vocab_size}", f"tokenizer={tokenizer}", "num_rounds=1"


def bpe_of(config: RunConfig) -> BPETokenizerConfig:
    assert isinstance(config.tokenizer, BPETokenizerConfig)
    return config.tokenizer


def central(config: RunConfig, owners: Iterable[Path], merges_per_round: int = 1) -> tuple[Pair, ...]:
    """The merges of all training text in one place."""
    texts = [text for path in owners for text in config.task.training_texts(read_rows(path, TextRow))]
    return train_bpe(texts, bpe_of(config).vocab_size, merges_per_round)


def learned(folder: Path) -> tuple[Pair, ...]:
    return bpe_of(load_run_config(folder / "config.yaml")).build().merges


@dataclass
class Diary(Observer):
    """Writes down what it is told."""

    rounds: list[tuple[int, int, int]] = field(default_factory=list)
    trained: list[tuple[int, int]] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    repetitions: list[tuple[int, int]] = field(default_factory=list)

    def read(self, line: str) -> None:
        self.found.append(line)

    def tokenizer_round(self, merges: int, max_merges: int, cohort: int) -> None:
        self.rounds.append((merges, max_merges, cohort))

    def tokenizer_trained(self, merges: int, max_merges: int) -> None:
        self.trained.append((merges, max_merges))

    def refused(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        self.repetitions.append((round_number, exchange))


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


class Faulty(ClientApp):
    """A real ClientApp whose counts pass through a fault."""

    def __init__(self, app: ClientApp, fault: Fault) -> None:
        super().__init__()
        self.app, self.fault = app, fault

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != COUNT:
            return self.app(message, context)
        request = CountRequest.from_record(message.content)
        return self.fault(lambda content: self.app(content, context), message, request)


@pytest.mark.parametrize("merges_per_round", [1, 7])
@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_federation_learns_what_all_its_training_text_in_one_place_would_teach(
    run_config: MakeConfig, make_owners: MakeOwners, tmp_path: Path, aggregation: str, merges_per_round: int
) -> None:
    overrides = (f"aggregation={{type: {aggregation}}}", "task.validation_fraction=0.25")
    config, diary = run_config(*bpe(merges_per_round), *overrides), Diary()
    owners = sorted(make_owners(4).iterdir())
    texts = ["the naïve sea 日本 日本語 saw", "日本 naïve the sea", "😀 the 😀 naïve", "no 日本"] * 3
    write_rows(owners[3], [TextRow(text=text) for text in texts])
    InlineEngine(config, owners).run(tmp_path / "run", resume=False, observer=diary)
    assert len(learned(tmp_path / "run")) == VOCAB - 259
    assert learned(tmp_path / "run") == central(config, owners, merges_per_round)
    assert learned(tmp_path / "run") != central(run_config(*bpe(1)), owners)  # which holds other text out
    merges = range(0, VOCAB - 259, merges_per_round)
    assert diary.rounds == [(number, VOCAB - 259, 4) for number in merges]
    assert diary.trained == [(VOCAB - 259, VOCAB - 259)]
    assert diary.refusals == []


def test_all_that_follows_has_the_merges_and_the_models_folder_says_them(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    config, owners = run_config(*bpe(8), "evaluation.max_examples=1000"), make_owners(3)
    seen: list[wire.RoundRequest] = []

    class Listening(ClientApp):
        def __init__(self, app: ClientApp) -> None:
            super().__init__()
            self.app = app

        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type in (wire.TRAIN, wire.EVALUATE):
                seen.append(wire.RoundRequest.from_record(message.content))
            return self.app(message, context)

    state = run_federation(open_grid(owners, {BAD: Listening}), config, tmp_path / "run")
    merges = central(config, owners.iterdir(), 8)
    resolved = config.with_merges(merges)
    assert {r.client_plan for r in seen} == {resolved.client_plan.to_json()}
    assert load_run_config(tmp_path / "run" / "config.yaml") == resolved
    assert {r.run_id for r in seen} == {state.run_id}
    _, saved = load_model(tmp_path / "run")
    assert saved.tokenizer == resolved.tokenizer
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert all(row["eval/bits_per_byte"] > 0 for row in rows)
    # log2(V) bits a token of an untrained model, over fewer tokens than bytes; of each owner as many texts are drawn
    tokens, size = 0.0, 0.0
    for path in owners.iterdir():
        rows_of_owner = read_rows(path, TextRow)
        held_out = {row.text for row in rows_of_owner} - set(config.task.training_texts(rows_of_owner))
        tokens += float(np.mean([len(Tokenizer(merges).encode(text)) + 1 for text in held_out]))
        size += float(np.mean([len(text.encode()) for text in held_out]))
    most, least = np.log2(VOCAB) * tokens / size, np.log2(VOCAB) * (tokens - 3) / size  # windows miss some ends
    assert 0.97 * least < rows[0]["eval/bits_per_byte"] < 1.03 * most


def test_text_with_few_pairs_fills_a_part_of_the_vocabulary(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    config, owners, diary = run_config(*bpe(16, 2000)), make_owners(3), Diary()
    run_federation(open_grid(owners), config, tmp_path / "run", observer=diary)
    merges = learned(tmp_path / "run")
    assert merges == central(config, owners.iterdir(), 16)
    assert diary.trained == [(len(merges), 1741)]
    assert 14 < len(merges) < 200


@pytest.fixture
def train(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> Callable[..., RunConfig]:
    """Learn a tokenizer from three owners, one merge a round, BAD with `fault`."""

    def run(fault: Fault, observer: Observer, *overrides: str) -> RunConfig:
        grid = open_grid(make_owners(3), {BAD: lambda app: Faulty(app, fault)})
        return train_tokenizer(context_of(run_config(*bpe(1), *overrides), grid, observer, tmp_path))[0]

    return run


def context_of(config: RunConfig, grid: Grid, observer: Observer, folder: Path) -> RunContext:
    aggregator, min_cohort = build_aggregator(config.aggregation, None, observer)
    journal = Journal(folder)
    journal.begin()
    return RunContext(
        config=config,
        grid=grid,
        nodes=ConnectedNodes(grid, observer),
        aggregator=aggregator,
        observer=observer,
        min_cohort=min_cohort,
        journal=journal,
        plan=Plan.of(config.client_plan, journal.run_id, ["owner-00", BAD, "owner-02"], min_cohort),
    )


def in_round(number: int, exchanges: int = 100) -> Fault:
    """No power in a round, for some exchanges."""
    left = [exchanges]

    def fault(answer: Answer, message: Message, request: CountRequest) -> Message:
        if request.round == number and left[0]:
            left[0] -= 1
            return Message(Error(100, "no power"), reply_to=message)
        return answer(message)

    return fault


def test_an_owner_who_is_not_in_the_first_sum_is_in_none(
    train: Callable[..., RunConfig], make_owners: MakeOwners
) -> None:
    diary = Diary()
    config = train(in_round(1), diary)
    others = [path for path in make_owners(3).iterdir() if path.stem != BAD]
    assert bpe_of(config).build().merges == central(config, others)
    assert diary.refusals == [(BAD, "no power")]
    assert [cohort for _, _, cohort in diary.rounds] == [3, *(2 for _ in diary.rounds[1:])]


def test_an_owner_who_is_lost_later_is_waited_for(train: Callable[..., RunConfig], make_owners: MakeOwners) -> None:
    diary = Diary()
    config = train(in_round(5, exchanges=2), diary)
    assert bpe_of(config).build().merges == central(config, make_owners(3).iterdir())
    assert [number for number, _ in diary.repetitions] == [5, 5]


def test_an_owner_who_is_lost_for_good_ends_the_training_in_one_line(train: Callable[..., RunConfig]) -> None:
    line = (
        r"^tokenizer: round 4: failed in 3 attempts, the last because updates: must be at least min_cohort = 3, "
        rf"got 2; {BAD}: no power .AGFL-ROUND-013"
    )
    with pytest.raises(RoundError, match=line):
        train(in_round(4), Diary())


LIES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "counts twice": (lambda lanes: np.array([2, *lanes[1:]], np.uint64), "count: must be 1, got 2 [AGFL-WIRE-024]"),
    "does not count": (lambda lanes: np.array([0, *lanes[1:]], np.uint64), "count: must be 1, got 0 [AGFL-WIRE-024]"),
    "overflows": (
        lambda lanes: np.array([*lanes[:-1], 2**63], np.uint64),
        "lanes: every count must be below 3074457345618258602, got 9223372036854775808 [AGFL-WIRE-025]",
    ),
    "too long": (
        lambda lanes: np.array([*lanes, 0], np.uint64),
        "lanes: must be uint64 of shape (65537,), got uint64 of shape (65538,) [AGFL-WIRE-044]",
    ),
    "another type": (
        lambda lanes: lanes.astype(np.int64),
        "lanes: must be uint64 of shape (65537,), got int64 of shape (65537,) [AGFL-WIRE-044]",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_counts_that_do_not_hold_are_refused_by_name(
    train: Callable[..., RunConfig], make_owners: MakeOwners, lie: str
) -> None:
    change, reason = LIES[lie]

    def fault(answer: Answer, message: Message, request: CountRequest) -> Message:
        lanes = answer(message).content.array_records["arrays"]["lanes"].numpy()
        reply = wire.RoundReply(request.client_plan_hash, request.round, request.exchange, change(lanes))
        return Message(reply.to_record(), reply_to=message)

    diary = Diary()
    config = train(fault, diary)
    others = [path for path in make_owners(3).iterdir() if path.stem != BAD]
    assert bpe_of(config).build().merges == central(config, others)
    assert diary.refusals == [(BAD, reason)]


@dataclass
class Impatient(Diary):
    """Ends the run once three have refused the plan; the server itself would wait for others."""

    def refused(self, name: str, reason: str) -> None:
        super().refused(name, reason)
        if len(self.refusals) == 3:
            raise PulledPlugError


def test_owners_who_do_not_permit_the_run_are_asked_to_count_nothing(
    run_config: MakeConfig, make_owners: MakeOwners, tmp_path: Path
) -> None:
    counted: list[int] = []

    class Counting(ClientApp):
        def __init__(self, app: ClientApp) -> None:
            super().__init__()
            self.app = app

        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == COUNT:
                counted.append(message.metadata.dst_node_id)
            return self.app(message, context)

    paths = sorted(make_owners(3).iterdir())
    for policy, rule in (
        (Policy(runs="all"), "allow_plain: must be true"),
        (Policy(allow_plain=True), "runs: must be all in this owner's policy"),
    ):
        apps = {i: Counting(create_client_app(Node(p.stem, p, "cpu", policy=policy))) for i, p in enumerate(paths)}
        diary = Impatient()
        with InProcessGrid(apps, 1) as grid, pytest.raises(PulledPlugError):
            run_federation(grid, run_config(*bpe(1)), tmp_path / rule[:4], observer=diary)
        assert [name for name, _ in diary.refusals] == [path.stem for path in paths]
        assert all(reason.startswith(rule) for _, reason in diary.refusals)
    assert not counted


@dataclass(frozen=True)
class Blaming:
    """Sums over nobody, and proves that BAD broke the protocol."""

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
        raise AttemptFailed("AGFL-ROUND-000", f"mask_key: of {BAD}", {}, frozenset({BAD}))

    def requiring(self, min_cohort: int) -> Blaming:
        return self


def test_a_member_that_broke_the_protocol_is_not_waited_for(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    context = context_of(run_config(*bpe(1)), open_grid(make_owners(3)), Observer(), tmp_path)
    context = replace(context, aggregator=Blaming())
    with pytest.raises(RoundError, match=r"^tokenizer: round 1: failed in 3 attempts, the last because mask_key"):
        train_tokenizer(context)
    everybody = replace(context, members=frozenset(f"owner-{i:02}" for i in range(3)))
    with pytest.raises(RoundError, match=r"^tokenizer: round 1: failed in 1 attempt, because mask_key"):
        train_tokenizer(everybody)


@dataclass
class Weighing:
    """Sums as `inner` does, and knows how many of the vectors that it returned are still there when it sums again."""

    inner: Aggregator
    returned: list[weakref.ref[Lanes]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)

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
        self.alive.append(sum(ref() is not None for ref in self.returned))
        found = self.inner.sum(grid, cohort, request, codec, timeout_s, groups, records)
        self.returned.append(weakref.ref(found.lanes))
        return found

    def requiring(self, min_cohort: int) -> Weighing:
        self.inner = self.inner.requiring(min_cohort)
        return self


def test_a_summed_vector_is_gone_before_the_next_one_comes(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    grid = open_grid(make_owners(3), {BAD: lambda app: Faulty(app, in_round(1))})
    context = context_of(run_config(*bpe(8)), grid, Observer(), tmp_path)
    scale = Weighing(context.aggregator)
    _, row = train_tokenizer(replace(context, aggregator=scale))
    assert scale.alive == [0] * 4
    assert (row["clients"], row["refused"]) == (2, 1)


@dataclass
class Interrupter(Diary):
    """Ends the run when so many merges are learned, or when the first round starts."""

    merges: int = -1

    def tokenizer_round(self, merges: int, max_merges: int, cohort: int) -> None:
        super().tokenizer_round(merges, max_merges, cohort)
        if merges == self.merges:
            raise PulledPlugError

    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        if self.merges == -1:
            raise PulledPlugError


def everything(folder: Path) -> dict[str, bytes]:
    names = ("config.yaml", "model/config.yaml", "model/model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("merges", [0, 8, 24, -1])
def test_a_run_that_was_killed_learns_its_tokenizer_again_or_goes_on_with_it(
    run_config: MakeConfig, make_owners: MakeOwners, tmp_path: Path, merges: int
) -> None:
    config, owners = run_config(*bpe(8)), sorted(make_owners(3).iterdir())
    InlineEngine(config, owners).run(tmp_path / "whole", resume=False, observer=Diary())
    with pytest.raises(PulledPlugError):
        InlineEngine(config, owners).run(tmp_path / "torn", resume=False, observer=Interrupter(merges=merges))
    diary = Diary()
    InlineEngine(config, owners).run(tmp_path / "torn", resume=True, observer=diary)
    assert everything(tmp_path / "torn") == everything(tmp_path / "whole")
    assert [m for m, _, _ in diary.rounds] == ([] if merges == -1 else [0, 8, 16, 24])
    finished = everything(tmp_path / "torn")
    InlineEngine(config, owners).run(tmp_path / "torn", resume=True, observer=diary)
    assert everything(tmp_path / "torn") == finished


def test_a_server_that_was_killed_learns_the_same_tokenizer_under_numbers_that_were_never_used(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    """It keeps no merges of a training that was broken off, and the nodes, which live on, answer no number twice."""
    config, owners, numbers = run_config(*bpe(8)), make_owners(3), list[int]()

    class Listening(ClientApp):
        def __init__(self, app: ClientApp) -> None:
            super().__init__()
            self.app = app

        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == COUNT:
                numbers.append(CountRequest.from_record(message.content).exchange)
            return self.app(message, context)

    grid = open_grid(owners, {BAD: Listening})
    with pytest.raises(PulledPlugError):
        run_federation(grid, config, tmp_path / "torn", observer=Interrupter(merges=24))
    run_federation(grid, config, tmp_path / "torn", resume=True)
    assert learned(tmp_path / "torn") == central(config, owners.iterdir(), 8)
    assert len(numbers) == 3 + 4
    assert numbers == sorted(set(numbers))


def test_a_run_that_was_killed_while_it_learned_can_also_be_started_anew(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    config, owners = run_config(*bpe(8)), make_owners(3)
    with pytest.raises(PulledPlugError):
        run_federation(open_grid(owners), config, tmp_path / "run", observer=Interrupter(merges=8))
    run_federation(open_grid(owners), config, tmp_path / "run")
    assert learned(tmp_path / "run") == central(config, owners.iterdir(), 8)
    with pytest.raises(ConfigError, match="AGFL-CONFIG-078"):
        run_federation(open_grid(owners), config, tmp_path / "run")


def test_a_run_is_resumed_with_the_merges_of_its_folder_only_if_it_is_the_same_run(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    config, grid = run_config(*bpe(8)), open_grid(make_owners(3))
    run_federation(grid, config, tmp_path / "run")
    before = everything(tmp_path / "run")
    others = [(*bpe(8), "seed=9"), bpe(7), bpe(8, 280), ("model.vocab_size=259",)]
    for overrides in others:
        with pytest.raises(
            CheckpointError, match=r"belongs to a run with another configuration: [a-z_.]+ was .*AGFL-CHECKPOINT-016"
        ):
            run_federation(grid, run_config(*overrides), tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"^--resume: .*none/config\.yaml: .*AGFL-CONFIG-003"):
        run_federation(grid, config, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    assert everything(tmp_path / "run") == before
    longer = run_config(*bpe(8), "num_rounds=2")
    assert run_federation(grid, longer, tmp_path / "run", resume=True).round == 2
    assert learned(tmp_path / "run") == central(config, make_owners(3).iterdir(), 8)


def test_merges_that_are_given_are_not_learned(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    given = "tokenizer={type: bpe, vocab_size: 290, merges: [[116, 104], [259, 101]]}"
    config, diary = run_config(*bpe(8), given), Diary()
    run_federation(open_grid(make_owners(3)), config, tmp_path / "run", observer=diary)
    assert learned(tmp_path / "run") == ((116, 104), (259, 101))
    assert not diary.rounds
    assert not diary.trained


@pytest.mark.parametrize("merges_per_round", [1, 8])
def test_the_operators_own_text_teaches_the_tokenizer_without_the_owners(
    run_config: MakeConfig, make_owners: MakeOwners, tmp_path: Path, merges_per_round: int
) -> None:
    text = "Of the sea and the shore they sang, and of the ships.\n" * 3
    (tmp_path / "public.txt").write_text(text)
    tokenizer = (
        f"tokenizer={{type: bpe, vocab_size: 270, merges_per_round: {merges_per_round}, text: {tmp_path}/public.txt}}"
    )
    config, diary = run_config("model.vocab_size=270", tokenizer, "num_rounds=1"), Diary()
    owners = sorted(make_owners(3).iterdir())
    InlineEngine(config, owners).run(tmp_path / "run", resume=False, observer=diary)
    assert learned(tmp_path / "run") == train_bpe([text.strip()], 270, merges_per_round)
    assert bpe_of(load_run_config(tmp_path / "run" / "config.yaml")).text is None, "nobody else has the file"
    assert (diary.rounds, diary.trained) == ([], [(11, 11)])
    (found,) = diary.found
    assert re.fullmatch(r"tokenizer\.text: 1 file, \d rows?, columns text, 16\d characters, utf-8", found)
    again = run_config("model.vocab_size=270", tokenizer, "num_rounds=2")
    InlineEngine(again, owners).run(tmp_path / "run", resume=True, observer=diary)
    assert len(diary.trained) == 1, "a run that goes on has its merges"


def test_public_text_that_cannot_be_read_is_said_before_anybody_waits(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    tokenizer = f"tokenizer={{type: bpe, vocab_size: 290, text: {tmp_path}/missing.txt}}"
    config = run_config("model.vocab_size=290", tokenizer)
    with pytest.raises(ConfigError, match=r"^tokenizer\.text: .*missing\.txt: no such file"):
        run_federation(open_grid(make_owners(3)), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    both = "tokenizer={type: bpe, vocab_size: 290, merges: [], text: public.txt}"
    with pytest.raises(ConfigError, match=r"text: must not be given where merges are, got 'public\.txt'"):
        run_config("model.vocab_size=290", both)


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_what_learning_took_stands_in_the_row_of_round_0(
    run_config: MakeConfig, make_owners: MakeOwners, tmp_path: Path, aggregation: str
) -> None:
    config, owners = run_config(*bpe(8), f"aggregation={{type: {aggregation}}}"), sorted(make_owners(4).iterdir())
    InlineEngine(config, owners).run(tmp_path / "run", resume=False, observer=Diary())
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().split("\n")[0])
    assert (row["round"], row["clients"], row["refused"]) == (0, 4, 0)
    assert row["bytes_up"] > 4 * 256**2, "each of four owners counts all pairs of bytes, and more"
    assert row["bytes_down"] > 0
    assert row["seconds"] > 0


def test_the_operator_is_told_each_tenth(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "agfl.server"):
        observer = LogObserver("eval/bits_per_byte")
        for merges in range(0, 2000, 5):
            observer.tokenizer_round(merges, 2000, 24)
        observer.tokenizer_trained(2000, 2000)
    assert len(caplog.messages) == 11
    assert caplog.messages[0] == "tokenizer: 0 of 2000 merges, counting at 24 nodes"
    assert caplog.messages[-1] == "tokenizer: 2000 of 2000 merges, learned"
