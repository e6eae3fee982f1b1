"""An evil server asks again: for an old attempt, with old messages, or more often than the owner permits."""

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


def asks(owner: Owner, round_number: int, attempt: int, run_id: str = "run") -> None:
    owner.half.begin(round_request(run_id, round_number, attempt), owner.vector.copy())


def test_attack_the_same_attempt_is_asked_for_again(world: World) -> None:
    owner = world.owners[VICTIM]
    asks(owner, 4, 1)
    line = r"^attempt: must come after round 4 attempt 1, got run run round 4 attempt 1$"
    with pytest.raises(ProtocolViolation, match=line):
        owner.half.member.check(round_request("run", 4, 1))  # before any text is touched
    with pytest.raises(ProtocolViolation, match=line):
        asks(owner, 4, 1)


@pytest.mark.parametrize(("round_number", "attempt"), [(4, 0), (3, 0), (3, 9), (1, 2**31 - 1)])
def test_attack_an_earlier_round_or_attempt_is_asked_for(world: World, round_number: int, attempt: int) -> None:
    asks(world.owners[VICTIM], 4, 1)
    with pytest.raises(ProtocolViolation, match=r"^attempt: must come after round 4 attempt 1, got"):
        asks(world.owners[VICTIM], round_number, attempt)


def test_attack_a_restarted_node_is_asked_again(world: World, tmp_path: Path) -> None:
    owner = world.owners[VICTIM]
    asks(owner, 4, 1)
    owner.half = Half(SecureMember(VICTIM, owner.key, world.roster, Policy(), tmp_path / VICTIM))
    with pytest.raises(ProtocolViolation, match=r"^attempt: must come after round 4 attempt 1, got"):
        asks(owner, 4, 1)


def test_attack_another_run_in_between_does_not_bring_back_the_first(world: World) -> None:
    asks(world.owners[VICTIM], 4, 1)
    asks(world.owners[VICTIM], 1, 0, run_id="other")
    with pytest.raises(ProtocolViolation, match=r"^attempt: must come after round 4 attempt 1, got"):
        asks(world.owners[VICTIM], 4, 1)


def test_attack_more_attempts_at_a_round_than_the_owner_allows(world: World) -> None:
    """Sums over different survivors of one round can be subtracted from each other."""
    for attempt in (0, 1, 5):
        asks(world.owners[VICTIM], 1, attempt)
    line = (
        r"^attempt: must be among the attempts at a round that this owner's uploads_per_round allows, got .* attempt 6$"
    )
    with pytest.raises(ProtocolViolation, match=line):
        asks(world.owners[VICTIM], 1, 6)
    asks(world.owners[VICTIM], 2, 0)


def test_attack_counts_are_asked_for_as_often_as_it_takes(world: World) -> None:
    """Counts are remembered and bounded like updates, in the same memory."""
    member = world.owners[VICTIM].half
    for attempt in (0, 1, 2):
        member.begin(count_request("counts", 1, attempt), world.owners[VICTIM].vector.copy())
    line = (
        r"^attempt: must be among the attempts at a round that this owner's uploads_per_round allows, got .* attempt 3$"
    )
    with pytest.raises(ProtocolViolation, match=line):
        member.begin(count_request("counts", 1, 3), world.owners[VICTIM].vector.copy())
    with pytest.raises(ProtocolViolation, match=r"^attempt: must come after round 1 attempt 2, got"):
        member.begin(round_request("counts", 1, 2), world.owners[VICTIM].vector.copy())


def test_attack_shares_of_another_attempt_are_delivered(world: World) -> None:
    old = Attempt(world, 0)
    old.share()
    attempt = Attempt(world, 1)
    attempt.share()
    attempt.dealt["owner-001"] = old.dealt["owner-001"]
    line = r"^sealed shares of 'owner-001': must open for 'owner-000' in this attempt; they do not$"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.mask(attempt.mask_request(VICTIM))


def test_attack_agreements_of_another_attempt_are_shown(world: World) -> None:
    old = Attempt(world, 0)
    old.share()
    old.mask()
    signatures = old.agree()
    attempt = Attempt(world, 1)
    attempt.share()
    attempt.mask()
    attempt.agree()
    line = r"^signature: must be that of 'owner-000' over this attempt \(sign/agreement\); it is not$"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.unmask(attempt.unmask_request(signatures))


def test_attack_a_request_of_the_last_attempt_is_delivered_again(world: World) -> None:
    old = Attempt(world, 0)
    Attempt(world, 1)
    line = r"^attempt: must be the one under way, run run round 1 attempt 1, got run run round 1 attempt 0$"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.share(old.share_request())


def test_attack_a_request_of_the_last_attempt_is_delivered_under_the_number_of_this_one(world: World) -> None:
    old = Attempt(world, 0)
    attempt = Attempt(world, 1)
    with pytest.raises(ProtocolViolation, match=r"^members: must hold this client's own record"):
        world.owners[VICTIM].half.share(replace(old.share_request(), attempt=attempt.id))


@pytest.mark.parametrize("trip", ["share", "mask", "agree"])
def test_attack_a_trip_is_asked_for_twice(world: World, trip: str) -> None:
    victim, attempt = world.owners[VICTIM].half, Attempt(world)
    attempt.share()
    again: object = attempt.share_request()
    if trip != "share":
        attempt.mask()
        again = attempt.mask_request(VICTIM)
    if trip == "agree":
        attempt.agree()
        again = messages.AgreeRequest(attempt.id, attempt.names)
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow \w+ of an attempt under way, follows \w+$"):
        getattr(victim, trip)(again)


def test_attack_the_last_trip_is_asked_for_twice(world: World) -> None:
    victim, attempt = world.owners[VICTIM].half, Attempt(world)
    attempt.share()
    attempt.mask()
    request = attempt.unmask_request(attempt.agree())
    victim.unmask(request)
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Agreed of an attempt under way, follows nothing$"):
        victim.unmask(request)


@pytest.mark.parametrize("trip", ["mask", "agree", "unmask"])
def test_attack_a_trip_is_skipped(world: World, trip: str) -> None:
    victim, attempt = world.owners[VICTIM].half, Attempt(world)
    request = {
        "mask": messages.MaskRequest(attempt.id, attempt.names, (NOTHING,) * 4),
        "agree": messages.AgreeRequest(attempt.id, attempt.names),
        "unmask": messages.UnmaskRequest(attempt.id, attempt.names, (bytes(64),) * 5),
    }[trip]
    stage = {"mask": "Shared", "agree": "Masked", "unmask": "Agreed"}[trip]
    line = rf"^trip: must follow {stage} of an attempt under way, follows Advertised$"
    with pytest.raises(ProtocolViolation, match=line):
        getattr(victim, trip)(request)
