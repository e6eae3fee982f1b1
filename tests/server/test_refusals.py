"""An owner that refuses is left out and named, and waited for like one that was killed; it ends nobody's run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from tests.secagg_world import World

from agfl_models.errors import RoundError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.plans.plan import Plan
from agfl_server.app import run_federation
from agfl_server.cli import LogObserver
from agfl_server.rounds import refusals
from agfl_server.rounds.observer import DISCONNECTED, Observer, Row
from agfl_server.rounds.refusals import Refusals
from agfl_server.rounds.state import ServerState
from agfl_server.transport import connected_nodes
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_server.transport.messaging import error_of
from agfl_sim.engines.grid import InProcessGrid

BAD, REASON = "owner-01", "data: this owner's data cannot be used"
REFUSED, RAISED, LOST, GONE = 100, 2, 3, 5  # Flower's codes, but the first
MakeConfig = Callable[..., RunConfig]
MakeOwners = Callable[..., Path]
OpenGrid = Callable[..., InProcessGrid]


class Refusing(ClientApp):
    """A node that answers rounds with an error for a while."""

    def __init__(self, app: ClientApp, times: int, code: int = REFUSED, message_type: str = wire.TRAIN) -> None:
        super().__init__()
        self.app, self.left, self.code, self.message_type = app, times, code, message_type

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == self.message_type and self.left:
            self.left -= 1
            return Message(Error(self.code, REASON), reply_to=message)
        return self.app(message, context)


class Recorder(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def held_out(self, name: str, seconds: float) -> None:
        self.lines.append(f"{name} is left out for {seconds:g} s")

    def absent(self, reasons: Mapping[str, str]) -> None:
        self.lines.append(", ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def names_of(owners: Path) -> Callable[[int], str | None]:
    return {1000 + i: path.stem for i, path in enumerate(sorted(owners.iterdir()))}.get


Federate = Callable[..., ServerState]


@pytest.fixture
def federate(run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path) -> Federate:
    """Run two rounds of two owners, one of whom answers with an error as often as `times`."""

    def run(times: int, *, message_type: str = wire.TRAIN, can_change: bool, observer: Observer) -> ServerState:
        owners = make_owners(2)
        grid = open_grid(owners, {BAD: lambda app: Refusing(app, times, message_type=message_type)})
        config = run_config("num_rounds=2", "aggregation.max_attempts=3", "aggregation.min_cohort=2")
        registered = names_of(owners) if can_change else None
        return run_federation(grid, config, tmp_path / "run", observer=observer, registered_name=registered)

    return run


def test_an_owner_that_refuses_more_often_than_a_round_is_tried_does_not_end_the_run(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "FIRST_S", 0.05)
    observer = Recorder()
    assert federate(5, can_change=True, observer=observer).round == 2
    assert observer.lines[:2] == [f"{BAD} is left out for 0.05 s", f"{BAD}: {REASON}"]
    assert sum("left out" in line for line in observer.lines) == 5


def test_where_one_process_holds_all_owners_a_refusal_ends_the_round(federate: Federate) -> None:
    """Nobody is there who could mend it."""
    with pytest.raises(RoundError, match=f"failed in 3 attempts.*{BAD}: {REASON}"):
        federate(99, can_change=False, observer=Recorder())


def test_who_refuses_the_plan_is_waited_for_only_if_somebody_may_change_that(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node cannot note what it approved on a full disk."""
    monkeypatch.setattr(connected_nodes, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(connected_nodes, "_PROPOSE_AGAIN_S", 0.5)
    line = f"too few owners take part: a sum needs 2, 1 are left; {BAD}: {REASON}.*AGFL-ROUND-001"
    with pytest.raises(RoundError, match=line):
        federate(999, message_type=wire.PROPOSE, can_change=False, observer=Recorder())


def test_an_owner_of_another_machine_that_refuses_the_plan_at_first_ends_no_run(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected_nodes, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(connected_nodes, "_PROPOSE_AGAIN_S", 0.1)
    assert federate(5, message_type=wire.PROPOSE, can_change=True, observer=Recorder()).round == 2


def test_the_others_go_on_without_an_owner_that_refuses(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    owners, observer = make_owners(3), Recorder()
    grid = open_grid(owners, {BAD: lambda app: Refusing(app, 1)})
    config = run_config("num_rounds=2", "aggregation.min_cohort=2")
    state = run_federation(grid, config, tmp_path / "run", observer=observer, registered_name=names_of(owners))
    assert (state.round, state.row["clients"]) == (2, 2)
    assert observer.lines == [f"{BAD} is left out for 30 s"]


def test_an_owner_that_is_started_anew_is_asked_for_its_approval_at_once(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid
) -> None:
    owners, observer = make_owners(2), Recorder()
    grid = open_grid(owners)
    nodes = ConnectedNodes(grid, observer, names_of(owners))
    nodes.propose(Plan.of(run_config().client_plan, "run", ["owner-00", BAD], 2))
    assert len(nodes.connected()) == 2
    nodes.note_answers((), {BAD: REASON})
    assert nodes.connected().keys() == {"owner-00"}
    assert nodes.absent() == {BAD: REASON}
    online = list(grid.get_node_ids())
    grid.get_node_ids = lambda: online[:1]  # type: ignore[method-assign]
    assert nodes.connected().keys() == {"owner-00"}
    assert nodes.absent() == {BAD: "not connected"}
    grid.get_node_ids = lambda: online  # type: ignore[method-assign]
    assert nodes.connected().keys() == {"owner-00", BAD}
    assert nodes.absent() == {}


@pytest.mark.parametrize(
    ("code", "expected"),
    [(REFUSED, (REASON, True)), (RAISED, (REASON, True)), (LOST, (REASON, False)), (GONE, ("disconnected", False))],
)
def test_a_node_that_is_gone_has_refused_nothing(code: int, expected: tuple[str, bool]) -> None:
    InProcessGrid({}, 1)  # makes this process one that may make messages
    request = Message(wire.IdentifyRequest().to_record(), 7, wire.IDENTIFY)
    request.metadata.__dict__["_message_id"] = "m"
    assert error_of(Message(Error(code, REASON), reply_to=request)) == expected


def test_who_refuses_again_and_again_is_asked_ever_more_seldom() -> None:
    now = 0.0
    noted = Refusals(clock=lambda: now)
    waits = []
    for _ in range(7):
        waits.append(noted.note("alice", REASON))
        assert not noted.is_due("alice")
        now += waits[-1]
        assert noted.is_due("alice")
    assert waits == [30, 60, 120, 240, 480, 600, 600]
    now += 599
    noted.forget_old()
    assert "alice" in noted
    now += 1
    noted.forget_old()
    assert "alice" not in noted
    assert noted.note("alice", REASON) == 30


def test_waiting_for_owners_is_no_part_of_a_rounds_seconds(
    run_config: MakeConfig, make_owners: MakeOwners, open_grid: OpenGrid, tmp_path: Path
) -> None:
    owners = make_owners(2)
    grid = open_grid(owners)
    online, come_at = list(grid.get_node_ids()), time.monotonic() + 3.0

    def get_node_ids() -> list[int]:
        return online[: 1 if time.monotonic() < come_at else 2]

    grid.get_node_ids = get_node_ids  # type: ignore[method-assign]
    rows: list[Row] = []
    observer = Recorder()
    observer.round_finished = rows.append  # type: ignore[method-assign, assignment]
    started = time.monotonic()
    config = run_config("num_rounds=1", "aggregation.min_cohort=2")
    run_federation(
        grid, config, tmp_path / "run", observer=observer, registered_name=names_of(owners), owners=["owner-00", BAD]
    )
    whole_s = time.monotonic() - started
    assert whole_s >= 3
    assert rows[0]["seconds"] is not None
    assert rows[0]["seconds"] <= whole_s - 2.5
    assert observer.lines == [f"{BAD}: not connected"]


def test_progress_moves_as_each_client_finishes_not_when_all_have(tmp_path: Path) -> None:
    """In a secure sum the work is done before the first trip ends; the vectors come all at once, later."""
    told: list[str] = []

    class Watching(Observer):
        def client_finished(self, name: str) -> None:
            told.append(f"finished {name}")

        def replied(self, name: str) -> None:
            told.append(f"replied {name}")

    World.of(4, tmp_path).secure_sum(observer=Watching())
    assert sorted(told[:4]) == [f"finished owner-{i:03}" for i in range(4)]
    assert sorted(told[4:]) == [f"replied owner-{i:03}" for i in range(4)]


def test_a_node_that_has_gone_is_said_to_be_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agfl.server")
    observer = LogObserver("eval/loss")
    observer.refused("carol", DISCONNECTED)
    observer.refused("dave", REASON)
    observer.absent({"alice": REASON, "bob": "not connected", "carol": REASON})
    assert caplog.messages == [
        "carol disconnected",
        f"dave refused: {REASON}",
        f"not taking part: alice, carol ({REASON}); bob (not connected)",
    ]
