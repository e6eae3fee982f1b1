"""A server that is killed anywhere in a sum goes on where it was: the same bits, and no client is asked for others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from tests.secagg_world import TRIPS, LanesOnly, MemoryGrid, World, round_request

from agfl_client.ledger.ledger_file import read_entries
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.rounds.journal import Journal, Records
from agfl_server.rounds.observer import Observer

RECORDS = ("1-keys", "2-dealt", "3-sum", "4-signatures", "5-openings")


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


@dataclass
class Server:
    """A server over the journal in `folder`; each sum is that of a process that was started anew.

    replies: of each client in each trip, all different ones that it ever gave.
    """

    world: World
    folder: Path
    replies: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    asked: list[str] = field(default_factory=list)

    def sum(self, dies_in: str = "", after: int = 0, dies_at: tuple[str, str] = ("", "")) -> CohortSum:
        """Die in a trip, once `after` clients have replied, or at a record: before or after it is written."""
        left = [after]

        def note(kind: str, name: str, content: RecordDict) -> RecordDict:
            if kind == dies_in and left[0] == 0:
                raise PulledPlugError
            self.asked.append(kind)
            return content

        def take(kind: str, name: str, content: RecordDict) -> RecordDict:
            self.replies[kind, name].add(content.object_id)
            left[0] -= kind == dies_in
            return content

        journal, request = Journal(self.folder), round_request(exchange=1)
        entry = replace(journal.current(0), round=1, is_open=True, request=request.broadcast_hash.hex())
        entry = replace(entry, cohort=tuple(self.world.names))
        grid = MemoryGrid(self.world.owners, note, take)
        aggregator = SecureSum(Observer(), self.world.roster, self.world.parameters, 1.0, num_threads=1)
        records = Mortal(journal.open(entry), *dies_at)
        return aggregator.sum(grid, grid.ids, request, LanesOnly(7), 1.0, records=records)

    def check(self, found: CohortSum) -> None:
        """Nobody lost, the exact sum, one vector of each, and whatever was asked for twice came twice the same."""
        assert found.survivors == tuple(self.world.names)
        np.testing.assert_array_equal(found.lanes, self.world.plain_sum(self.world.names))
        assert {key: len(replies) for key, replies in self.replies.items()} == {
            (kind, name): 1 for kind in TRIPS for name in self.world.names
        }
        for name in self.world.names:
            ledger = self.world.owners[name].half.member.ledger
            assert ledger.has_left("run", 1)
            assert sum(e == "left" for e in events(ledger._file._path)) == 1


@dataclass(frozen=True)
class Mortal:
    """Records whose server dies when it writes one."""

    inner: Records
    trip: str
    when: str

    def read(self, trip: str) -> dict[str, bytes] | None:
        return self.inner.read(trip)

    def write(self, trip: str, content: Mapping[str, bytes | memoryview]) -> None:
        if (self.trip, self.when) == (trip, "before"):
            raise PulledPlugError
        self.inner.write(trip, content)
        if self.trip == trip:
            raise PulledPlugError


def events(path: Path) -> list[str]:
    return [entry["event"] for entry in read_entries(path)]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    journal = Journal(tmp_path / "output")
    journal.begin("run")
    (tmp_path / "owners").mkdir()
    return Server(World.of(5, tmp_path / "owners", uploads_per_round=1), tmp_path / "output")


@pytest.mark.parametrize("replied", [0, 1, 3])
@pytest.mark.parametrize("trip", TRIPS)
def test_killed_in_a_trip_it_goes_on_in_that_trip(server: Server, trip: str, replied: int) -> None:
    """S0, before anybody is asked, to S5."""
    with pytest.raises(PulledPlugError):
        server.sum(trip, replied)
    server.asked.clear()
    server.check(server.sum())
    assert server.asked == [kind for kind in TRIPS[TRIPS.index(trip) :] for _ in range(5)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("record", RECORDS)
def test_killed_between_two_trips_it_asks_again_only_what_it_has_not_on_disk(
    server: Server, record: str, when: str
) -> None:
    """Also S6, with the openings stored and the sum not opened yet."""
    with pytest.raises(PulledPlugError):
        server.sum(dies_at=(record, when))
    server.asked.clear()
    server.check(server.sum())
    first = RECORDS.index(record) + (when == "after")
    assert server.asked == [kind for kind in TRIPS[first:] for _ in range(5)]


def test_killed_in_each_trip_in_turn_it_still_ends_with_the_same_bits(server: Server) -> None:
    for trip in TRIPS:
        for replied in (1, 4):
            with pytest.raises(PulledPlugError):
                server.sum(trip, replied)
    server.check(server.sum())


def test_a_sum_that_was_opened_is_opened_again_without_asking_anybody(server: Server) -> None:
    """S7: until the journal says that the model has it, a second process finds the same."""
    first = server.sum()
    server.asked.clear()
    again = server.sum()
    server.check(again)
    np.testing.assert_array_equal(first.lanes, again.lanes)
    assert server.asked == []


@pytest.mark.parametrize("trip", TRIPS[3:])
def test_clients_that_were_started_anew_after_their_vector_left_are_missed_and_the_bits_stay(
    server: Server, trip: str
) -> None:
    with pytest.raises(PulledPlugError):
        server.sum(trip, 2)
    server.world.owners["owner-004"].half.member.forget()
    found = server.sum()
    assert found.survivors == tuple(server.world.names)
    np.testing.assert_array_equal(found.lanes, server.world.plain_sum(server.world.names))
    assert set(found.refused) == {"owner-004"}


def test_clients_that_forgot_before_their_vector_left_answer_under_the_same_number_afresh(server: Server) -> None:
    """Nothing of them is in a sum yet: with fresh keys the exchange begins again from what is on disk, or fails."""
    with pytest.raises(PulledPlugError):
        server.sum(wire.TRAIN, 3)
    for name in server.world.names[:2]:
        server.world.owners[name].half.member.forget()
    found = server.sum()
    np.testing.assert_array_equal(found.lanes, server.world.plain_sum(server.world.names))
    for name in server.world.names:
        assert len(server.replies[sw.MASK, name]) == 1
        assert len(server.replies[wire.TRAIN, name]) == (2 if name in server.world.names[:2] else 1)


@pytest.mark.parametrize("trip", TRIPS)
def test_an_exchange_is_spent_once_a_vector_may_have_left(server: Server, trip: str) -> None:
    def lose(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        return None if kind == trip and name != "owner-000" else content

    with pytest.raises(AttemptFailed) as failed:
        server.world.secure_sum(round_request(exchange=1), on_reply=lose)
    assert failed.value.is_spent == (trip not in TRIPS[:2])


def test_a_sum_whose_count_is_wrong_is_spent(server: Server) -> None:
    server.world.owners["owner-000"].vector[0] = 2
    with pytest.raises(AttemptFailed, match=r"^count: must be 5 after unmasking, got 6") as failed:
        server.world.secure_sum(round_request(exchange=1))
    assert failed.value.is_spent
