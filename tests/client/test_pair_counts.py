"""What a node counts for a tokenizer: its training text and no other, from whatever state, and only as configured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from tests.client.test_node import UNASKED, request_of, said
from tests.tiny_federation import TINY

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.training import pair_counts
from agfl_models.errors import AgflError, ConfigError, WireError
from agfl_models.examples import TextRow, read_rows, write_rows
from agfl_models.tokenizers.bpe import PairTable, Words, count_words, train_bpe
from agfl_models.tokenizers.tokenizer import FIRST_MERGE, Pair
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.messages.counting import COUNT, CountCodec, CountRequest
from agfl_protocol.messages.wire import FinishRequest, ProposeRequest, read_vector
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.secagg.lanes import Lanes
from agfl_sim.engines.grid import InProcessGrid

MakeConfig = Callable[..., RunConfig]
MakeNode = Callable[..., Node]
BPE = ("model.vocab_size=290", "tokenizer={type: bpe, vocab_size: 290, merges_per_round: 4}")
MERGES = ((116, 104), (259, 101), (32, 115), (32, 97))
SECRET = "Zanzibar"


def count_request(
    config: RunConfig, merges: tuple[Pair, ...] = (), num_new: int = 0, number: int = 1, exchange: int = 0
) -> CountRequest:
    return CountRequest("r", number, exchange, "", config.client_plan.to_json(), merges, num_new, 3)


@pytest.fixture
def owner(make_owners: Callable[..., Path]) -> Path:
    return make_owners(2) / "owner-00.jsonl"


@pytest.fixture
def make_node(owner: Path) -> MakeNode:
    return lambda policy=None: Node("alice", owner, device="cpu", policy=policy or UNASKED)


def lanes(node: Node, request: CountRequest) -> Lanes:
    return read_vector(node.handle_count(request), "lanes", np.uint64, CountCodec.of(request).num_lanes)


def counts(node: Node, request: CountRequest) -> dict[Pair, int]:
    return CountCodec.of(request).decode(lanes(node, request))


def test_held_out_text_is_not_counted(run_config: MakeConfig, make_node: MakeNode, owner: Path) -> None:
    config, documents = run_config(*BPE, "task.validation_fraction=0.5"), read_rows(owner, TextRow)
    trained_on = config.task.training_texts(documents)
    assert 0 < len(trained_on) < len(documents)
    words = Words.of(count_words(trained_on))
    assert counts(make_node(), count_request(config)) == words.pairs()
    cut = words.merged(MERGES, FIRST_MERGE)
    assert counts(make_node(), count_request(config, MERGES, 3)) == cut.pairs(FIRST_MERGE + 1)


def test_a_vector_is_one_and_then_counts(run_config: MakeConfig, make_node: MakeNode) -> None:
    vector = lanes(make_node(), count_request(run_config(*BPE)))
    assert (vector.size, vector[0]) == (1 + 2**16, 1)
    assert 0 < vector[1 + 256 * ord("t") + ord("h")] < 1000


def test_counts_depend_on_neither_order_nor_what_is_warm(run_config: MakeConfig, make_node: MakeNode) -> None:
    config, other = run_config(*BPE), run_config(*BPE, "task.validation_fraction=0.5")
    requests = [
        count_request(config),
        count_request(config, MERGES[:2], 2, number=2),
        count_request(config, MERGES, 2, number=3),
        count_request(config, MERGES, 4, number=3, exchange=1),
        count_request(config, (MERGES[2], *MERGES[:2]), 1, number=4),  # not a continuation
        count_request(other, MERGES, 2, number=5),
    ]
    fresh = [counts(make_node(), request) for request in requests]
    node = make_node()
    for i in (0, 1, 2, 2, 3, 4, 1, 5, 0, 2):
        assert counts(node, requests[i]) == fresh[i]


def test_words_stay_warm_and_go_with_the_first_round_and_with_the_run(
    run_config: MakeConfig, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, config = make_node(), run_config(*BPE)
    node.handle_count(count_request(config))
    with monkeypatch.context() as patch:
        patch.setattr(pair_counts, "count_words", None)  # its text is not read again
        node.handle_count(count_request(config, MERGES[:2], 2, number=2))
        node.handle_count(count_request(config, MERGES, 2, number=3))
    assert node._words is not None
    node.handle_round(request_of(config.with_merges(MERGES)))
    assert node._words is None
    node.handle_count(count_request(config))
    assert not node.finished
    node.finish(FinishRequest("r"))
    assert node.finished
    assert node._words is None


DOUBLING = ((97, 97), *((token_id, token_id) for token_id in range(259, 280)))
Changes = dict[str, Any]
BAD_REQUESTS: dict[str, tuple[Changes, type[AgflError], str]] = {
    "config": ({"client_plan": "{}"}, ConfigError, "client plan from the server: .*: .*AGFL-CONFIG-008"),
    "too many new": (
        {"merges": (*MERGES, (0, 1)), "num_new": 5},
        WireError,
        r"^num_new: .*got 5 .AGFL-WIRE-052",
    ),
    "vocabulary full": (
        {"merges": tuple((0, byte) for byte in range(31)), "num_new": 1},
        WireError,
        "^merges: .*got 31 .AGFL-WIRE-053",
    ),
    "unknown token": (
        {"merges": ((97, 259),), "num_new": 1},
        ConfigError,
        r"^merges\.0: .*got 259 among 259 ids.*AGFL-CONFIG-020",
    ),
    "far out of range": (
        {"merges": ((97, 2**32 - 1),), "num_new": 1},
        ConfigError,
        r"^merges\.0: .*got 4294967295 among 259 ids.*AGFL-CONFIG-020",
    ),
    "mark": ({"merges": ((97, 257),), "num_new": 1}, ConfigError, r"^merges\.0: .*got 257.*AGFL-CONFIG-020"),
    "twice": ({"merges": ((97, 98),) * 2, "num_new": 1}, ConfigError, r"^merges\.1: .*got b'ab'.*AGFL-CONFIG-022"),
    "huge": (
        {"merges": DOUBLING, "num_new": 1},
        ConfigError,
        r"^merges\.7: .*got 256.*AGFL-CONFIG-021",
    ),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_attack_a_request_that_does_not_fit_is_refused_in_one_line_before_any_text_is_touched(
    run_config: MakeConfig, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    node, request = make_node(), count_request(run_config(*BPE))
    changes, error, rule = BAD_REQUESTS[kind]
    with monkeypatch.context() as patch:
        patch.setattr(pair_counts, "cut", None)
        with pytest.raises(error, match=rule) as caught:
            node.handle_count(replace(request, **changes))
    assert "\n" not in str(caught.value)
    assert counts(node, request) == counts(make_node(), request)


LEARNED = ("model.vocab_size=290", "tokenizer={type: bpe, vocab_size: 290, merges: []}")


@pytest.mark.parametrize("overrides", [(), LEARNED])
def test_nothing_is_counted_for_a_run_with_nothing_to_learn(
    run_config: MakeConfig, make_node: MakeNode, overrides: tuple[str, ...]
) -> None:
    config = run_config(*overrides)
    line = rf"^tokenizer: must have merges .*, got type {config.tokenizer.type} .AGFL-WIRE-051"
    with pytest.raises(WireError, match=line):
        make_node().handle_count(count_request(config))


def test_a_round_without_a_tokenizer_is_refused(run_config: MakeConfig, make_node: MakeNode) -> None:
    config = run_config(*BPE)
    request = replace(request_of(config.with_merges(())), client_plan=config.client_plan.to_json())
    with pytest.raises(ConfigError, match=r"^tokenizer\.merges: .*AGFL-CONFIG-019"):
        make_node().handle_round(request)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        (Policy(), r"^allow_plain: .*AGFL-POLICY-007"),
        (
            Policy(allow_plain=True, tasks=("translation",)),
            r"^tasks: must hold language_modeling to take part; it does not.*AGFL-POLICY-008",
        ),
        (
            Policy(allow_plain=True, max_parameters=9),
            r"^max_parameters: must be at least \d+, the run's, to take part; it is not.*AGFL-POLICY-003",
        ),
    ],
)
def test_the_owners_policy_holds_before_any_text_is_touched(
    run_config: MakeConfig, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, policy: Policy, line: str
) -> None:
    monkeypatch.setattr(pair_counts, "cut", None)
    with pytest.raises(PolicyViolation, match=line):
        make_node(policy).handle_count(count_request(run_config(*BPE)))


def test_secure_counts_need_a_node_with_a_roster(
    run_config: MakeConfig, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_counts, "cut", None)
    config = run_config(*BPE, "aggregation={type: secure}")
    plan = Plan.of(config.client_plan, "r", ("alice", "bob", "carol"), 3)
    with pytest.raises(PolicyViolation, match=r"^aggregation\.type: secure needs a node that was started with"):
        make_node().propose(ProposeRequest(plan.to_json()))
    with pytest.raises(PlanViolation, match=r"^plan: .*AGFL-PLAN-002"):
        make_node().handle_count(count_request(config))


def test_text_and_paths_never_leave_the_node(
    tmp_path: Path, run_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    InProcessGrid({}, 1)  # makes this process one that may make messages
    rows = [TextRow(text=text) for text in (f"{SECRET} and {SECRET}", f"more of {SECRET}")]
    write_rows(tmp_path / f"{SECRET}.jsonl", rows)
    app = create_client_app(Node("alice", tmp_path / f"{SECRET}.jsonl", policy=UNASKED))
    request = count_request(run_config(*BPE))
    requests = [request, replace(request, merges=MERGES, num_new=2)]
    requests += [replace(request, **changes) for changes, _, _ in BAD_REQUESTS.values()]
    with caplog.at_level(logging.CRITICAL, "agfl.client"):
        replies = [deliver(app, r.to_record()) for r in requests]
    assert [reply.has_error() for reply in replies] == [False, False, *(True for _ in BAD_REQUESTS)]
    for reply in replies:
        assert SECRET.encode() not in said(reply)
        assert str(tmp_path).encode() not in said(reply)


def deliver(app: ClientApp, content: RecordDict) -> Message:
    message = Message(content, 7, COUNT)
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, Context(1, 7, {}, RecordDict(), {}))


FEW = [TextRow(text=text) for text in ("abab aaa bb ab", "ba ab", "ba ba")]


@pytest.fixture(scope="module")
def fuzzed_node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    path = tmp_path_factory.mktemp("owner") / "alice.jsonl"
    write_rows(path, FEW)
    return Node("alice", path, device="cpu", policy=UNASKED)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return load_run_config(path, BPE)


IDS = st.sampled_from([97, 98, 32, 255, 256, 258, 259, 260, 261, 300, 2**32 - 1])


@given(merges=st.lists(st.tuples(IDS, IDS), max_size=4), num_new=st.integers(0, 5))
def test_attack_any_merges_are_counted_as_told_or_refused(
    fuzzed_node: Node, config: RunConfig, merges: list[Pair], num_new: int
) -> None:
    request = count_request(config, tuple(merges), num_new)
    with suppress(AgflError):
        answered = counts(fuzzed_node, CountRequest.from_record(request.to_record()))
        words = Words.of(count_words(config.task.training_texts(FEW)))
        assert answered == words.merged(merges, FIRST_MERGE).pairs(request.first_new)


def test_an_owner_alone_learns_what_its_own_text_teaches(
    run_config: MakeConfig, make_node: MakeNode, owner: Path
) -> None:
    config, node, table = run_config(*BPE), make_node(), PairTable()
    table.add(counts(node, count_request(config)))
    while chosen := table.choose(min(1, 20 - len(table.merges))):
        table.add(counts(node, count_request(config, tuple(table.merges), len(chosen))))
    texts = config.task.training_texts(read_rows(owner, TextRow))
    assert tuple(table.merges) == train_bpe(texts, FIRST_MERGE + 20)
