"""SecureSum beside the exact sum: whom it asks, whom it names, and how it fails and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from tests.secagg_world import TRIPS, LanesOnly, MemoryGrid, World, count_request, round_request

from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import Aggregator, AttemptFailed
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.rounds.observer import Observer


class Diary(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def replied(self, name: str) -> None:
        self.lines.append(f"replied {name}")

    def refused(self, name: str, reason: str) -> None:
        self.lines.append(f"refused {name}: {reason}")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(5, tmp_path)


def test_each_trip_asks_everybody_once_and_in_order(world: World) -> None:
    asked: list[str] = []

    def note(kind: str, name: str, content: RecordDict) -> RecordDict:
        asked.append(kind)
        return content

    grid = MemoryGrid(world.owners, note, None)
    aggregator: Aggregator = SecureSum(Observer(), world.roster, world.parameters)
    aggregator.sum(grid, grid.ids, round_request(), LanesOnly(7), 1.0)
    assert asked == [kind for kind in TRIPS for _ in range(5)]


def test_a_round_that_only_evaluates_is_the_same_but_for_the_kind_of_its_first_trip(world: World) -> None:
    kinds = set()

    def note(kind: str, name: str, content: RecordDict) -> RecordDict:
        kinds.add(kind)
        return content

    result = world.secure_sum(replace(round_request(), train=False, evaluate=True), on_request=note)
    assert kinds == {wire.EVALUATE, *TRIPS[1:]}
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


def test_counts_are_summed_as_updates_are_but_for_the_kind_of_the_first_trip(world: World) -> None:
    kinds = set()

    def note(kind: str, name: str, content: RecordDict) -> RecordDict:
        kinds.add(kind)
        return content

    result = world.secure_sum(count_request(), on_request=note)
    assert kinds == {COUNT, *TRIPS[1:]}
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


@pytest.mark.parametrize("trip", TRIPS[:3])
def test_a_sum_that_requires_everybody_is_not_opened_without_one(world: World, trip: str) -> None:
    """Not even asked to be: nobody signs a smaller U3."""
    asked = []

    def lose(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        asked.append(kind)
        return None if (kind, name) == (trip, "owner-003") else content

    grid = MemoryGrid(world.owners, lose, None)
    aggregator = SecureSum(Observer(), world.roster, world.parameters).requiring(5)
    with pytest.raises(AttemptFailed, match=r"got 4; owner-003: disconnected.*AGFL-ROUND-016"):
        aggregator.sum(grid, grid.ids, round_request(), LanesOnly(7), 1.0)
    assert asked[-1] == trip
    grid = MemoryGrid(world.owners, None, None)
    result = aggregator.sum(grid, grid.ids, round_request(exchange=1), LanesOnly(7), 1.0)
    assert result.survivors == tuple(world.names)


def test_whoever_is_lost_is_named_once_with_the_reason(world: World) -> None:
    diary = Diary()
    result = world.secure_sum(
        on_reply=lambda kind, name, content: None if (kind, name) == (sw.AGREE, "owner-003") else content,
        observer=diary,
    )
    assert diary.lines == [*(f"replied {n}" for n in world.names), "refused owner-003: disconnected"]
    assert result.refused == {"owner-003": "disconnected"}
    assert result.survivors == tuple(world.names)


def test_a_failed_attempt_says_how_many_were_needed_and_who_was_lost_why(world: World) -> None:
    def lost(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        return None if kind == sw.SHARE and name < "owner-002" else content

    line = "U2, clients that dealt shares: must be at least 4, got 3; owner-000: disconnected; owner-001: disconnected"
    with pytest.raises(AttemptFailed) as failed:
        world.secure_sum(on_reply=lost)
    assert str(failed.value) == f"{line} [AGFL-ROUND-016]"
    assert failed.value.refused == dict.fromkeys(["owner-000", "owner-001"], "disconnected")
    assert failed.value.guilty == frozenset()
    result = world.secure_sum(round_request(exchange=1))  # and the next exchange, with fresh keys, succeeds
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


@pytest.mark.parametrize(
    ("trip", "lost", "line"),
    [
        (wire.TRAIN, 3, "U1, clients that announced keys: must be at least 3, got 2; "),
        (sw.SHARE, 2, "U2, clients that dealt shares: must be at least 4, got 3; "),
        (sw.MASK, 2, "U3, clients that sent a vector: must be at least 4, got 3; "),
        (sw.AGREE, 2, "signatures over U3: must be at least 4, got 3; "),
        (sw.UNMASK, 4, "openings, clients that gave shares: must be at least 2, got 1; "),
    ],
)
def test_an_attempt_ends_in_the_trip_that_loses_too_many(world: World, trip: str, lost: int, line: str) -> None:
    asked = []

    def lose(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        asked.append(kind)
        return None if kind == trip and name in world.names[:lost] else content

    with pytest.raises(AttemptFailed) as failed:
        world.secure_sum(on_request=lose)
    assert str(failed.value).startswith(line)
    assert asked[-1] == trip


def test_owners_that_ask_for_more_company_than_there_is_are_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    """Without the owner that asks for 7, the one that asks for 6 has too few, and without both the others do not."""
    world = World.of(7, tmp_path, max_colluders=1)
    strict = {"owner-005": 7, "owner-006": 6}
    for name, min_cohort in strict.items():
        world.owners[name].half.member._parameters = Parameters(1, min_cohort)
    result = world.secure_sum(cohort=world.names[1:])
    lines = {n: f"min_cohort: must be at most 5, the clients left with it, got {m}" for n, m in strict.items()}
    assert result.refused == lines
    assert result.survivors == tuple(world.names[1:5])


def test_too_few_are_left_without_those_that_ask_for_more(world: World) -> None:
    for name in world.names[:2]:
        world.owners[name].half.member._parameters = Parameters(1, 5)
    with pytest.raises(AttemptFailed, match=r"^U1, clients whose min_cohort can be met: must be at least 3, got 2; "):
        world.secure_sum(cohort=world.names[:4])


@pytest.mark.parametrize("trip", [sw.SHARE, sw.MASK])
def test_the_largest_min_cohort_of_the_members_counts_for_the_server_too(tmp_path: Path, trip: str) -> None:
    """Whoever asks for 6 of 7 opens no sum of 5, so the server asks nobody to."""
    world = World.of(7, tmp_path, max_colluders=1)
    world.owners["owner-006"].half.member._parameters = Parameters(1, 6)

    def lose(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        return None if kind == trip and name in world.names[:2] else content

    with pytest.raises(AttemptFailed, match=r"must be at least 6, got 5; "):
        world.secure_sum(on_request=lose)


def test_an_owner_with_another_c_is_refused_by_name(tmp_path: Path) -> None:
    world = World.of(5, tmp_path)
    world.owners["owner-004"].half.member._parameters = Parameters(2, 4)
    result = world.secure_sum()
    assert result.refused == {"owner-004": "max_colluders: must be 1 as here, 'owner-004' has 2 [AGFL-SECURE-008]"}


def test_an_owner_outside_the_servers_roster_is_refused_by_name(tmp_path: Path, world: World) -> None:
    (tmp_path / "other").mkdir()
    stranger = World.of(6, tmp_path / "other").owners["owner-005"]
    world.owners["owner-005"] = stranger
    result = world.secure_sum()
    assert result.refused == {"owner-005": "roster: must hold every member, got 'owner-005' [AGFL-SECURE-004]"}
    assert result.survivors == tuple(world.names[:5])


def test_every_byte_is_counted(world: World) -> None:
    result = world.secure_sum()
    assert result.bytes_up > 5 * (164 + 4 * 113 + 56 + 64 + 5 * 32)
    assert result.bytes_down > 5 * (12 + 5 * 164 + 4 * 113 + 4 * 64)
