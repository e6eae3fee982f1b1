"""The grid in virtual time: the events of the rule that looks at everybody, without a look at everybody."""

from __future__ import annotations

import gc
import math
import random
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from itertools import accumulate
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from agfl_protocol.messages import wire
from agfl_server.transport.messaging import ask_nodes
from agfl_sim.engines.grid import LocalGrid
from agfl_sim.virtual_time.ahead import Ahead
from agfl_sim.virtual_time.answers import Answer
from agfl_sim.virtual_time.devices import Absences, Device
from agfl_sim.virtual_time.virtual_grid import VirtualGrid


class Echo(LocalGrid):
    """Nodes that answer at once, or `later`; replies: those that somebody still holds."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count), waits_for_all=False)
        self.later: list[tuple[Future[Message], Message]] | None = None
        self.replies = weakref.WeakSet[Message]()

    def _submit(self, message: Message, message_id: str) -> Future[Message]:
        future = Future[Message]()
        reply = Message(RecordDict({"c": ConfigRecord({"x": bytes(1000)})}), reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = message_id
        self.replies.add(reply)
        if self.later is None:
            future.set_result(reply)
        else:
            self.later.append((future, reply))
        return future


class OldRule(VirtualGrid):
    """Finds the next event by a look at all tasks and all owners."""

    def _next_event(self, until: float) -> float:
        while True:
            coming = [(t.at, key) for key, t in self._tasks.items() if t.at > self._now or not t.is_known]
            at, key = min(coming, default=(math.inf, ""))
            if at >= until or self._tasks[key].is_known:
                break
            self._finish(key, self._tasks[key])
        return min(at, until, *(device.absences.next_turn(self._now) for device in self._devices.values()))


def devices(count: int, rng: random.Random) -> dict[int, Device]:
    def absences() -> Absences:
        turns = list(accumulate(rng.randint(1, 40) for _ in range(2 * rng.randint(0, 4))))
        return Absences(iter(list(zip(turns[::2], turns[1::2], strict=True))))

    return {
        node: Device(f"owner-{node}", rng.choice([0.0, 1.0, 5.0, rng.expovariate(0.1)]), 1e4, 1e4, 0.5, absences())
        for node in range(count)
    }


def message_for(node: int) -> Message:
    return Message(RecordDict({"c": ConfigRecord({"x": bytes(1000)})}), node, wire.TRAIN)


def opened(kind: type[VirtualGrid], inner: LocalGrid, found: Mapping[int, Device], notes: list[Answer]) -> VirtualGrid:
    return kind(inner, found, lambda message: 2, 0.0, lambda moment: None, notes.append)


def history(kind: type[VirtualGrid], seed: int) -> list[object]:
    """Return all that a server sees of a grid in a run of random questions, waits and pulls."""
    rng, notes = random.Random(seed), list[Answer]()
    grid = opened(kind, Echo(8), devices(8, rng), notes)
    told, ids = list[object](), list[str]()
    for _ in range(60):
        match rng.randint(0, 4):
            case 0:
                nodes = rng.sample(range(8), rng.randint(1, 4))
                ids += filter(None, grid.push_messages([message_for(node) for node in nodes]))
            case 1:
                told.append([m.metadata.src_node_id for m in grid.pull_messages(rng.sample(ids, len(ids) // 2))])
            case 2:
                grid.forget(rng.sample(ids, len(ids) // 4))
            case _:
                grid._is_over = False
                grid.wait(rng.choice([0.0, 0.1, 1.0]), rng.choice([0.5, 10.0, math.inf]))
        told.append((grid.now(), list(grid.get_node_ids())))
    grid.finish()
    return [*told, *notes]


@pytest.mark.parametrize("seed", range(40))
def test_events_are_those_of_a_look_at_everybody(seed: int) -> None:
    assert history(VirtualGrid, seed) == history(OldRule, seed)


class Counted(dict[Any, Any]):
    """Counts how many entries were looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        self.looks += len(self)
        return super().__iter__()

    def values(self) -> Any:
        self.looks += len(self)
        return super().values()

    def items(self) -> Any:
        self.looks += len(self)
        return super().items()


def looks_per_owner(count: int) -> float:
    """Of an exchange in which each owner answers at a moment of its own, and comes and goes meanwhile."""
    found = Counted(
        {
            node: Device(f"owner-{node}", 1 + node / count, 1e4, 1e4, 0.0, Absences(iter([(1 + node / count, 9.0)])))
            for node in range(count)
        }
    )
    grid = opened(VirtualGrid, Echo(count), found, [])
    grid._tasks = tasks = Counted()
    found.looks = 0
    answers = list(ask_nodes(grid, [message_for(node) for node in range(count)], 300.0))
    assert len(answers) == count
    return (found.looks + tasks.looks) / count


def test_an_event_costs_as_many_looks_among_many_owners_as_among_few() -> None:
    assert looks_per_owner(1600) < 1.3 * looks_per_owner(100)


def test_replaced_moments_do_not_pile_up() -> None:
    ahead, rng = Ahead[int]({}), random.Random(7)
    moments: dict[int, float] = {}
    for _ in range(5000):
        key = rng.randrange(20)
        moments[key] = rng.random() + 1000
        ahead.put(key, moments[key])
        if rng.random() < 0.2:
            gone = rng.choice(list(moments))
            ahead.drop(gone)
            del moments[gone]
        assert ahead.first() == min(((at, key) for key, at in moments.items()), default=None)
        assert len(ahead._heap) <= 2 * 20 + 65


def test_an_answer_that_nobody_waits_for_is_let_go_of_though_its_moment_is_to_come() -> None:
    """As large as a model each, they were held until their owner was asked again: with many owners, for ever."""
    found = {
        node: Device(f"owner-{node}", 1e6 if node else 1.0, 1e6, 1e6, 0.0, Absences(iter(()))) for node in range(9)
    }
    inner, notes = Echo(9), list[Answer]()
    grid = opened(VirtualGrid, inner, found, notes)
    assert [node for node, _ in ask_nodes(grid, [message_for(node) for node in range(6)], 60.0)] == [0]
    inner.later = []
    assert list(ask_nodes(grid, [message_for(node) for node in (7, 8)], 60.0)) == []
    for future, reply in inner.later:
        future.set_result(reply)
    inner.later = None
    del future, reply
    list(ask_nodes(grid, [message_for(0)], 60.0))
    gc.collect()
    assert len(inner.replies) == 0
    grid.finish()
    assert [one.owner for one in notes if one.is_late] == [f"owner-{node}" for node in (1, 2, 3, 4, 5, 7, 8)]
