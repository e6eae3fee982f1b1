"""An evil server asks again: for an old exchange, with old messages, or more often than the owner permits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.secagg_world import Attempt, Half, Owner, World, count_request, round_request

from agfl_client.policy import Policy
from agfl_client.secure_member import SecureMember
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation

VICTIM = "owner-000"
NOTHING = messages.SealedShares(bytes(81), bytes(16), bytes(16))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(5, tmp_path)


def asks(owner: Owner, round_number: int, exchange: int, run_id: str = "run") -> None:
    owner.half.begin(round_request(run_id, round_number, exchange), owner.vector.copy())


def test_attack_the_same_attempt_is_asked_for_again(world: World) -> None:
    owner = world.owners[VICTIM]
    asks(owner, 4, 1)
    line = r"^exchange: must come after round 4 exchange 1, got run run round 4 exchange 1$"
    with pytest.raises(ProtocolViolation, match=line):
        owner.half.member.check(round_request("run", 4, 1))  # before any text is touched
    with pytest.raises(ProtocolViolation, match=line):
        asks(owner, 4, 1)


@pytest.mark.parametrize(("round_number", "exchange"), [(4, 0), (3, 0), (3, 9), (1, 2**31 - 1)])
def test_attack_an_earlier_round_or_attempt_is_asked_for(world: World, round_number: int, exchange: int) -> None:
    asks(world.owners[VICTIM], 4, 1)
    with pytest.raises(ProtocolViolation, match=r"^exchange: must come after round 4 exchange 1, got"):
        asks(world.owners[VICTIM], round_number, exchange)


def test_attack_a_restarted_node_is_asked_again(world: World, tmp_path: Path) -> None:
    owner = world.owners[VICTIM]
    asks(owner, 4, 1)
    owner.half = Half(SecureMember(VICTIM, owner.key, world.roster, Policy(), tmp_path / VICTIM))
    with pytest.raises(ProtocolViolation, match=r"^exchange: must come after round 4 exchange 1, got"):
        asks(owner, 4, 1)


def test_attack_another_run_in_between_does_not_bring_back_the_first(world: World) -> None:
    asks(world.owners[VICTIM], 4, 1)
    asks(world.owners[VICTIM], 1, 0, run_id="other")
    with pytest.raises(ProtocolViolation, match=r"^exchange: must come after round 4 exchange 1, got"):
        asks(world.owners[VICTIM], 4, 1)


def test_attack_more_attempts_at_a_round_than_the_owner_allows(world: World) -> None:
    """Sums over different survivors of one round can be subtracted from each other."""
    for exchange in (0, 1, 5):
        asks(world.owners[VICTIM], 1, exchange)
    line = r"^exchange: must be among the exchanges .* uploads_per_round allows, got .* exchange 6$"
    with pytest.raises(ProtocolViolation, match=line):
        asks(world.owners[VICTIM], 1, 6)
    asks(world.owners[VICTIM], 2, 0)


def test_attack_counts_are_asked_for_as_often_as_it_takes(world: World) -> None:
    """Counts are remembered and bounded like updates, in the same memory."""
    member = world.owners[VICTIM].half
    for exchange in (0, 1, 2):
        member.begin(count_request("counts", 1, exchange), world.owners[VICTIM].vector.copy())
    line = r"^exchange: must be among the exchanges .* uploads_per_round allows, got .* exchange 3$"
    with pytest.raises(ProtocolViolation, match=line):
        member.begin(count_request("counts", 1, 3), world.owners[VICTIM].vector.copy())
    with pytest.raises(ProtocolViolation, match=r"^exchange: must come after round 1 exchange 2, got"):
        member.begin(round_request("counts", 1, 2), world.owners[VICTIM].vector.copy())


def test_attack_shares_of_another_attempt_are_delivered(world: World) -> None:
    old = Attempt(world, 0)
    old.share()
    exchange = Attempt(world, 1)
    exchange.share()
    exchange.dealt["owner-001"] = old.dealt["owner-001"]
    line = r"^sealed shares of 'owner-001': must open for 'owner-000' in this exchange; they do not$"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.mask(exchange.mask_request(VICTIM))


def test_attack_agreements_of_another_attempt_are_shown(world: World) -> None:
    old = Attempt(world, 0)
    old.share()
    old.mask()
    signatures = old.agree()
    exchange = Attempt(world, 1)
    exchange.share()
    exchange.mask()
    exchange.agree()
    line = r"^signature: must be that of 'owner-000' over this exchange \(sign/agreement\); it is not$"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(signatures))


def test_attack_a_request_of_the_last_attempt_is_delivered_again(world: World) -> None:
    old = Attempt(world, 0)
    Attempt(world, 1)
    line = r"^exchange: must be the one under way, run run round 1 exchange 1, got run run round 1 exchange 0$"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.share(old.share_request())


def test_attack_a_request_of_the_last_attempt_is_delivered_under_the_number_of_this_one(world: World) -> None:
    old = Attempt(world, 0)
    exchange = Attempt(world, 1)
    with pytest.raises(ProtocolViolation, match=r"^members: must hold this client's own record"):
        world.owners[VICTIM].half.share(replace(old.share_request(), exchange=exchange.id))


@pytest.mark.parametrize("trip", ["share", "mask", "agree"])
def test_attack_a_trip_is_asked_for_twice(world: World, trip: str) -> None:
    victim, exchange = world.owners[VICTIM].half, Attempt(world)
    exchange.share()
    again: object = exchange.share_request()
    if trip != "share":
        exchange.mask()
        again = exchange.mask_request(VICTIM)
    if trip == "agree":
        exchange.agree()
        again = messages.AgreeRequest(exchange.id, exchange.names)
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow \w+ of an exchange under way, follows \w+$"):
        getattr(victim, trip)(again)


def test_attack_the_last_trip_is_asked_for_twice(world: World) -> None:
    victim, exchange = world.owners[VICTIM].half, Attempt(world)
    exchange.share()
    exchange.mask()
    request = exchange.unmask_request(exchange.agree())
    victim.unmask(request)
    with pytest.raises(
        ProtocolViolation, match=r"^trip: must follow Agreed of an exchange under way, follows nothing$"
    ):
        victim.unmask(request)


@pytest.mark.parametrize("trip", ["mask", "agree", "unmask"])
def test_attack_a_trip_is_skipped(world: World, trip: str) -> None:
    victim, exchange = world.owners[VICTIM].half, Attempt(world)
    request = {
        "mask": messages.MaskRequest(exchange.id, exchange.names, (NOTHING,) * 4),
        "agree": messages.AgreeRequest(exchange.id, exchange.names),
        "unmask": messages.UnmaskRequest(exchange.id, exchange.names, (bytes(64),) * 5),
    }[trip]
    stage = {"mask": "Shared", "agree": "Masked", "unmask": "Agreed"}[trip]
    line = rf"^trip: must follow {stage} of an exchange under way, follows Advertised$"
    with pytest.raises(ProtocolViolation, match=line):
        getattr(victim, trip)(request)
