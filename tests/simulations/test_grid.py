"""The Grid in this process carries what the wire would carry, and changes no number of a run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_sim.engines.grid import InProcessGrid, carried, deflated, inflated

OpenGrid = Callable[..., InProcessGrid]


def content(vector: NDArray[np.float32]) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"x": Array(vector)}), "config": ConfigRecord({"n": 1})})


def vector_of(message: Message) -> NDArray[Any]:
    return message.content.array_records["arrays"]["x"].numpy()


def app_of(answer: Callable[[Message], RecordDict]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer(message), reply_to=message)

    return app


def pulled(grid: InProcessGrid, ids: Iterable[str]) -> list[Message]:
    """Wait for all replies."""
    for _, future in list(grid._pending.values()):
        future.exception()
    return list(grid.pull_messages(ids))


def test_neither_side_can_reach_into_the_other() -> None:
    kept: list[RecordDict] = []

    def meddle(message: Message) -> RecordDict:
        kept.append(message.content)
        arrays = message.content.array_records["arrays"]
        arrays["x"].data = bytes(len(arrays["x"].data))
        arrays["y"] = Array(np.zeros(3, np.float32))
        message.content.config_records["config"]["n"] = 2
        kept.append(content(np.full(4, 7, np.float32)))
        return kept[-1]

    vector = np.arange(4, dtype=np.float32)
    sent = content(vector)
    with InProcessGrid({5: app_of(meddle)}, 1) as grid:
        request = Message(sent, 5, "train")
        (reply,) = pulled(grid, grid.push_messages([request]))
        assert np.array_equal(vector_of(request), vector)
        assert set(sent.array_records["arrays"]) == {"x"}
        assert sent.config_records["config"]["n"] == 1
        assert kept[0] is not sent
        assert reply.content is not kept[1]
        assert vector_of(reply).tolist() == [7] * 4
        kept[1].array_records["arrays"]["x"].data = b""
        assert vector_of(reply).tolist() == [7] * 4


def test_each_client_of_a_broadcast_gets_a_copy_of_its_own() -> None:
    seen: list[ArrayRecord] = []

    def keep(message: Message) -> RecordDict:
        seen.append(message.content.array_records["arrays"])
        return message.content

    sent = content(np.ones(3, np.float32))
    with InProcessGrid({i: app_of(keep) for i in range(3)}, 1) as grid:
        replies = pulled(grid, grid.push_messages([Message(sent, i, "train") for i in range(3)]))
    assert len({id(arrays) for arrays in seen}) == len(replies) == 3
    assert all(vector_of(reply).tolist() == [1, 1, 1] for reply in replies)


def test_replies_answer_their_messages_and_come_once() -> None:
    apps = {i: app_of(lambda message: content(vector_of(message) * 2)) for i in (3, 4)}
    with InProcessGrid(apps, 2) as grid:
        assert list(grid.get_node_ids()) == [3, 4]
        requests = [Message(content(np.full(1, i, np.float32)), 3 + i % 2, "train") for i in range(6)]
        ids = list(grid.push_messages(requests))
        assert len(set(ids)) == 6
        replies = pulled(grid, ids)
        assert {r.metadata.reply_to_message_id: vector_of(r)[0] for r in replies} == {
            mid: 2.0 * i for i, mid in enumerate(ids)
        }
        assert [r.metadata.src_node_id for r in replies] == [3 + i % 2 for i in range(6)]
        assert list(grid.pull_messages(ids)) == []
        assert list(grid.pull_messages(["never sent"])) == []
        assert len(list(grid.send_and_receive(requests))) == 6


def test_slow_node_that_is_asked_again_works_on_one_message_at_a_time_and_its_late_reply_is_dropped() -> None:
    at_work, most, begun, go_on = list[int](), list[int](), threading.Event(), threading.Event()

    def work(message: Message) -> RecordDict:
        at_work.append(1)
        most.append(len(at_work))
        begun.set()
        go_on.wait(20)
        at_work.pop()
        return message.content

    with InProcessGrid({1: app_of(work), 2: app_of(lambda message: message.content)}, 3) as grid:
        request = Message(content(np.ones(1, np.float32)), 1, "train")
        (late,) = grid.push_messages([request])
        assert begun.wait(20)
        (again,) = grid.push_messages([request])
        (other,) = grid.push_messages([Message(content(np.ones(1, np.float32)), 2, "train")])
        time.sleep(0.2)  # for a second thread to begin, if one does
        go_on.set()
        replies = pulled(grid, [late, again, other])
        assert [reply.metadata.reply_to_message_id for reply in replies] == [again, other]
        assert grid._pending == {}
    assert most == [1, 1]


def test_defect_of_a_client_comes_up_where_its_reply_is_pulled() -> None:
    def fail(message: Message) -> RecordDict:
        raise ZeroDivisionError("a defect")

    with InProcessGrid({1: app_of(fail)}, 1) as grid, pytest.raises(ZeroDivisionError, match="a defect"):
        pulled(grid, grid.push_messages([Message(content(np.ones(1, np.float32)), 1, "train")]))


@pytest.mark.parametrize(
    "different", [{"num_workers": 3}, {"first_id": 10**18, "step": -7}, {"num_workers": 2, "step": 100}]
)
def test_workers_and_node_ids_do_not_change_a_bit(
    tmp_path: Path,
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    open_grid: OpenGrid,
    different: dict[str, int],
) -> None:
    config, owners = (
        run_config("aggregation.cohort_size=3", "aggregation.server_optimizer={type: fedyogi}"),
        make_owners(4),
    )
    results = []
    for name, settings in (("one", {}), ("other", different)):
        state = run_federation(open_grid(owners, **settings), config, tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        weights = (tmp_path / name / "model" / "model.safetensors").read_bytes()
        results.append((state.model.tobytes(), weights, [{**row, "seconds": 0} for row in rows]))
    assert results[0] == results[1]


def through_the_wire(message: Message) -> Message:
    return inflated(*deflated(message))


@pytest.mark.parametrize("way", [carried, through_the_wire])
def test_what_is_carried_is_what_the_wire_would_bring(way: Callable[[Message], Message]) -> None:
    scalars: dict[str, Any] = {
        "int": -(2**40),
        "large": 2**63 + 1,
        "float": 0.1,
        "text": "ö\n",
        "bytes": b"\0\xff",
        "flag": True,
        "ints": [1, 2],
    }
    sent = RecordDict({"arrays": ArrayRecord({"x": Array(np.arange(5, dtype=np.uint64)), "none": Array(np.zeros(0))})})
    sent["config"], sent["metrics"], sent["empty"] = ConfigRecord(scalars), MetricRecord({"loss": 1.5}), ArrayRecord()
    request = Message(sent, 2**62, "query.share", ttl=7.0, group_id="3")
    request.metadata.__dict__["_message_id"] = "12"
    for message in (request, Message(RecordDict(), reply_to=request), Message(Error(101, "refused"), reply_to=request)):
        found = way(message)
        assert {**found.metadata.__dict__, "_message_id": ""} == {**message.metadata.__dict__, "_message_id": ""}
        assert found.has_error() == message.has_error()
        if message.has_error():
            assert (found.error.code, found.error.reason) == (101, "refused")
        else:
            assert dict(found.content) == dict(message.content)


@pytest.mark.parametrize("way", [carried, through_the_wire])
def test_what_the_wire_would_not_carry_is_not_carried(way: Callable[[Message], Message]) -> None:
    too_large, no_text = ConfigRecord({"n": 2**64}), ConfigRecord({"text": "\ud800"})
    for record in (too_large, no_text):
        with pytest.raises((ValueError, UnicodeError)):
            way(Message(RecordDict({"config": record}), 1, "train"))


def test_a_reply_ends_a_wait_and_none_does_not() -> None:
    go_on = threading.Event()

    def work(message: Message) -> RecordDict:
        go_on.wait(20)
        return message.content

    with InProcessGrid({1: app_of(work)}, 1) as grid:
        (asked,) = grid.push_messages([Message(content(np.ones(1, np.float32)), 1, "train")])
        started = time.monotonic()
        grid.clock.wait(0.05, 20.0)
        assert time.monotonic() - started >= 0.05
        assert list(grid.pull_messages([asked])) == []
        threading.Timer(0.05, go_on.set).start()
        started = time.monotonic()
        grid.clock.wait(20.0, 20.0)
        assert time.monotonic() - started < 10
        assert len(list(grid.pull_messages([asked]))) == 1
        started = time.monotonic()
        grid.clock.wait(20.0, 0.05)  # what came before was noted by the wait that it ended
        assert 0.05 <= time.monotonic() - started < 10
