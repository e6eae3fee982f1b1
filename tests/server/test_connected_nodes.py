"""Who is there: a node is asked until it has said who it is, and believed if its key was admitted under that NAME."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from tests.tiny_federation import plain_node

from agfl_client.app import REFUSED, create_client_app
from agfl_models.errors import RoundError
from agfl_protocol.messages import wire
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.sampling import Draw
from agfl_server.transport import connected_nodes
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_sim.engines.grid import InProcessGrid

LOST = "the node was lost before it answered"


class LostAtFirst(ClientApp):
    """A node whose owner presses Ctrl-C before it has said who it is, and starts it again with the same key."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self.app, self.is_lost = app, True

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == wire.IDENTIFY and self.is_lost:
            self.is_lost = False
            return Message(Error(3, LOST), reply_to=message)
        return self.app(message, context)


class Recorder(Observer):
    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []

    def refused(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))


def test_a_node_that_was_lost_before_it_said_who_it_is_is_asked_again(
    make_owners: Callable[..., Path], open_grid: Callable[..., InProcessGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, observer = open_grid(make_owners(2), {"owner-01": LostAtFirst}), Recorder()
    nodes = ConnectedNodes(grid, observer)
    monkeypatch.setattr(connected_nodes, "_ASK_AGAIN_S", 0.0)
    assert nodes.connected() == {"owner-00": 1000}
    assert observer.refusals == [("node 1001", LOST)]
    assert nodes.connected() == {"owner-00": 1000, "owner-01": 1001}
    assert observer.refusals == [("node 1001", LOST)]


@pytest.mark.parametrize("waits_for_all", [True, False])
def test_slow_answer_leaves_an_owner_out_but_in_a_simulation(
    make_owners: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, *, waits_for_all: bool
) -> None:
    """Else a busy machine would decide who is in the first round of many owners."""
    app = create_client_app(plain_node(make_owners(1) / "owner-00.jsonl"))

    def slow(message: Message, context: Context) -> Message:
        time.sleep(0.2)
        return app(message, context)

    monkeypatch.setattr(connected_nodes, "_IDENTIFY_TIMEOUT_S", 0.02)
    with InProcessGrid({7: slow}, 1, waits_for_all=waits_for_all) as grid:  # type: ignore[dict-item]  # it is called
        assert ConnectedNodes(grid, Observer()).connected() == ({"owner-00": 7} if waits_for_all else {})


def test_a_node_that_did_not_say_who_it_is_is_not_asked_at_once(
    make_owners: Callable[..., Path], open_grid: Callable[..., InProcessGrid]
) -> None:
    nodes = ConnectedNodes(open_grid(make_owners(2), {"owner-01": LostAtFirst}), Observer())
    for _ in range(3):
        assert nodes.connected() == {"owner-00": 1000}


class Mute(ClientApp):
    """A node that can be made to answer nothing, or only to say who it is."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self.app, self.answers = app, True
        self.asked: list[str] = []

    def __call__(self, message: Message, context: Context) -> Message:
        self.asked.append(message.metadata.message_type)
        if not self.answers:
            return Message(Error(3, LOST), reply_to=message)
        return self.app(message, context)


@pytest.fixture
def muted(make_owners: Callable[..., Path], open_grid: Callable[..., InProcessGrid]) -> tuple[ConnectedNodes, Mute]:
    """Two nodes, the second of which can fall silent."""
    found: list[Mute] = []

    def wrap(app: ClientApp) -> ClientApp:
        found.append(Mute(app))
        return found[0]

    nodes = ConnectedNodes(open_grid(make_owners(2), {"owner-01": wrap}), Observer())
    assert len(nodes.connected()) == 2
    return nodes, found[0]


def test_who_was_silent_is_drawn_again_a_while_later_if_it_answers(muted: tuple[ConnectedNodes, Mute]) -> None:
    nodes, _ = muted
    there = []
    for silent in (["owner-01"], [], [], [], ["owner-01"], [], [], [], [], []):
        nodes.note_answers(silent)
        there.append("owner-01" in nodes.connected())
    assert there == [False, False, True, True, False, False, False, False, True, True]


def test_who_stays_silent_costs_a_small_query_now_and_then(muted: tuple[ConnectedNodes, Mute]) -> None:
    nodes, mute = muted
    mute.answers, mute.asked = False, []
    nodes.note_answers(["owner-01"])
    for _ in range(62):
        nodes.note_answers([])
        assert nodes.connected().keys() == {"owner-00"}
    assert mute.asked == [wire.IDENTIFY] * 5


def test_who_was_silent_is_asked_at_once_where_too_few_others_are_there(muted: tuple[ConnectedNodes, Mute]) -> None:
    nodes, mute = muted
    nodes.note_answers(["owner-01"])
    assert nodes.connected().keys() == {"owner-00"}
    mute.asked = []
    assert nodes.wait_for(2).keys() == {"owner-00", "owner-01"}
    assert mute.asked == [wire.IDENTIFY]


class Named(InProcessGrid):
    """A `PopulousGrid` of whose owners those with an odd number, or all, refuse to say who they are."""

    def __init__(self, count: int, *, all_refuse: bool = False) -> None:
        super().__init__({}, 1, waits_for_all=True)
        self.names = [f"owner-{i:03}" for i in range(count)]
        self.asked = Counter[int]()
        self._all_refuse = all_refuse

    def node_of(self, name: str) -> int:
        return self.names.index(name)

    def _app_of(self, node: int) -> ClientApp:
        def answer(message: Message, context: Context) -> Message:
            self.asked[node] += 1
            if self._all_refuse or node % 2:
                return Message(Error(REFUSED, "data: is gone"), reply_to=message)
            return Message(wire.IdentifyReply(self.names[node], "1").to_record(), reply_to=message)

        return answer  # type: ignore[return-value]  # it is called


def test_others_take_the_place_of_invited_owners_that_refuse_who_are_asked_once() -> None:
    grid = Named(12)
    with grid:
        observer = Recorder()
        nodes = ConnectedNodes(grid, observer)
        cohorts = [nodes.invite(None, 4, 2, Draw(7, exchange)) or {} for exchange in range(12)]
        assert {len(cohort) for cohort in cohorts} == {4}
        assert {node % 2 for cohort in cohorts for node in cohort.values()} == {0}
        assert len({tuple(cohort) for cohort in cohorts}) > 3
        assert {grid.asked[node] for node in (1, 3, 5, 7, 9, 11)} == {1}
        assert dict(observer.refusals) == {name: "data: is gone" for name in grid.names[1::2]}
        rare = Draw(7, 1, excluded=grid.names[:4], avoided=grid.names[4:10])
        assert (nodes.invite(None, 2, 1, rare) or {}).keys() < {"owner-004", "owner-006", "owner-008", "owner-010"}
        line = r"a sum needs 7, 6 are left; owner-001: data: is gone; owner-003"
        with pytest.raises(RoundError, match=line):
            nodes.invite(None, None, 7, Draw(7, 1))


def test_where_all_owners_refuse_not_a_million_are_asked() -> None:
    grid = Named(200, all_refuse=True)
    with grid:
        with pytest.raises(RoundError, match=r"a sum needs 2, 0 are left; owner-\d+: data: is gone"):
            ConnectedNodes(grid, Observer()).invite(None, 3, 2, Draw(7, 0))
        assert sum(grid.asked.values()) == 30
