"""An evil server asks again: for an old exchange, with old messages, or more often than the owner permits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.secagg_world import Attempt, Half, Owner, World, count_request, round_request

from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.messages import KeyRecord

VICTIM = "owner-000"
NOTHING = messages.SealedShares(bytes(81), bytes(16), bytes(16))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(5, tmp_path)


def asks(owner: Owner, round_number: int, exchange: int, run_id: str = "run") -> KeyRecord:
    return owner.half.begin(round_request(run_id, round_number, exchange), owner.vector.copy()).record


def restart(world: World, folder: Path) -> None:
    """The victim's node is started anew; its ledger is there."""
    owner = world.owners[VICTIM]
    owner.half = Half(SecureMember(VICTIM, owner.key, world.roster, Policy(), folder / VICTIM))


def test_attack_the_same_exchange_is_asked_for_again(world: World) -> None:
    """Before a vector left: the same keys to the same request, others to another, and then the first are gone."""
    owner = world.owners[VICTIM]
    once = asks(owner, 4, 1)
    assert asks(owner, 4, 1) == once
    other = replace(round_request("run", 4, 1), model=np.zeros(3, np.float32))
    changed = owner.half.begin(other, owner.vector.copy()).record
    again = asks(owner, 4, 1)
    for key in ("channel_key", "mask_key", "self_commitment"):
        assert len({getattr(record, key) for record in (once, changed, again)}) == 3


@pytest.mark.parametrize(("round_number", "exchange"), [(4, 4), (3, 0), (9, 4), (3, 5), (5, 5), (2**31 - 1, 1)])
def test_attack_an_earlier_exchange_or_the_same_one_of_another_round_is_asked_for(
    world: World, round_number: int, exchange: int
) -> None:
    asks(world.owners[VICTIM], 4, 5)
    with pytest.raises(ProtocolViolation, match=r"^exchange: .*AGFL-SECURE-013"):
        asks(world.owners[VICTIM], round_number, exchange)


@pytest.mark.parametrize("exchange", [4, 0])
def test_attack_a_restarted_node_is_asked_for_an_earlier_exchange(world: World, tmp_path: Path, exchange: int) -> None:
    asks(world.owners[VICTIM], 4, 5)
    restart(world, tmp_path)
    with pytest.raises(ProtocolViolation, match=r"^exchange: .*AGFL-SECURE-013"):
        asks(world.owners[VICTIM], 4, exchange)


def test_attack_another_run_in_between_does_not_bring_back_the_first(world: World) -> None:
    asks(world.owners[VICTIM], 4, 5)
    asks(world.owners[VICTIM], 1, 0, run_id="other")
    with pytest.raises(ProtocolViolation, match=r"^exchange: .*AGFL-SECURE-013"):
        asks(world.owners[VICTIM], 4, 4)


def sends(world: World, exchange: int, round_number: int = 1) -> None:
    """Lead all until their vectors have left."""
    requests = dict.fromkeys(world.names, round_request("run", round_number, exchange))
    led = Attempt(world, exchange, requests)
    led.share()
    led.mask()


def test_attack_more_vectors_for_a_round_than_the_owner_allows(world: World, tmp_path: Path) -> None:
    """Sums over different survivors of one round can be set against each other; a restart forgets none of them."""
    for exchange in (0, 1, 5):
        sends(world, exchange)
    line = r"^exchange: must be among the exchanges .* uploads_per_round allows, got .* exchange 6.*AGFL-SECURE-014"
    with pytest.raises(ProtocolViolation, match=line):
        asks(world.owners[VICTIM], 1, 6)
    restart(world, tmp_path)
    with pytest.raises(ProtocolViolation, match=line):
        asks(world.owners[VICTIM], 1, 6)
    asks(world.owners[VICTIM], 2, 6)


def test_attack_more_keys_for_a_round_than_the_owner_allows(tmp_path: Path) -> None:
    """How long an owner trains, asked over and over, tells about its text; no vector need leave for that."""
    world = World.of(5, tmp_path, announcements_per_round=3)
    for exchange in (0, 1, 5):
        asks(world.owners[VICTIM], 1, exchange)
    line = (
        r"^exchange: must be among the exchanges .* announcements_per_round allows, got .* exchange 6.*AGFL-SECURE-014"
    )
    with pytest.raises(ProtocolViolation, match=line):
        asks(world.owners[VICTIM], 1, 6)
    asks(world.owners[VICTIM], 2, 6)


def test_attack_one_exchange_is_announced_more_often_than_the_owner_allows(tmp_path: Path) -> None:
    """Each time another model under one number that no vector left in: these count, too."""
    world = World.of(5, tmp_path, announcements_per_round=3)
    owner = world.owners[VICTIM]
    requests = [round_request(model=np.full(3, i, np.float32)) for i in range(4)]
    for request in requests[:3]:
        owner.half.begin(request, owner.vector.copy())
    line = (
        r"^exchange: must be among the exchanges .* announcements_per_round allows, got .* exchange 0.*AGFL-SECURE-014"
    )
    with pytest.raises(ProtocolViolation, match=line):
        owner.half.begin(requests[3], owner.vector.copy())


def test_attack_counts_are_asked_for_as_often_as_it_takes(tmp_path: Path) -> None:
    """Counts are remembered and bounded like updates, in the same ledger."""
    world = World.of(5, tmp_path, announcements_per_round=3)
    member = world.owners[VICTIM].half
    for exchange in (0, 1, 2):
        member.begin(count_request("counts", 1, exchange), world.owners[VICTIM].vector.copy())
    line = (
        r"^exchange: must be among the exchanges .* announcements_per_round allows, got .* exchange 3.*AGFL-SECURE-014"
    )
    with pytest.raises(ProtocolViolation, match=line):
        member.begin(count_request("counts", 1, 3), world.owners[VICTIM].vector.copy())
    for number in (2, 1):  # that of the last exchange, too, belongs to a count
        with pytest.raises(ProtocolViolation, match=r"^exchange: must come after round 1 exchange 2, got"):
            member.begin(round_request("counts", 1, number), world.owners[VICTIM].vector.copy())


def test_attack_shares_of_another_exchange_are_delivered(world: World) -> None:
    old = Attempt(world, 0)
    old.share()
    exchange = Attempt(world, 1)
    exchange.share()
    exchange.dealt["owner-001"] = old.dealt["owner-001"]
    line = r"^sealed shares of 'owner-001': .*AGFL-SECURE-007"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.mask(exchange.mask_request(VICTIM))


def test_attack_agreements_of_another_exchange_are_shown(world: World) -> None:
    old = Attempt(world, 0)
    old.share()
    old.mask()
    signatures = old.agree()
    exchange = Attempt(world, 1)
    exchange.share()
    exchange.mask()
    exchange.agree()
    line = r"^signature: .*AGFL-SECURE-005"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(signatures))


def test_attack_a_request_of_the_last_exchange_is_delivered_again(world: World) -> None:
    old = Attempt(world, 0)
    Attempt(world, 1)
    line = r"^exchange: .*got run run round 1 exchange 0.*AGFL-SECURE-037"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.share(old.share_request())


def test_attack_a_request_of_the_last_exchange_is_delivered_under_the_number_of_this_one(world: World) -> None:
    old = Attempt(world, 0)
    exchange = Attempt(world, 1)
    with pytest.raises(ProtocolViolation, match=r"^members: .*AGFL-SECURE-024"):
        world.owners[VICTIM].half.share(replace(old.share_request(), exchange=exchange.id))


@pytest.mark.parametrize("trip", ["share", "mask", "agree"])
def test_attack_a_trip_is_asked_for_twice_with_other_words(world: World, trip: str) -> None:
    """Another U1, U2 or U3 than the one that was answered; the same words get the same bytes, see test_masking.py."""
    victim, exchange = world.owners[VICTIM].half, Attempt(world)
    exchange.share()
    again: object = replace(exchange.share_request(), records=exchange.share_request().records[:4])
    if trip != "share":
        exchange.mask()
        again = exchange.mask_request(VICTIM, exchange.names[:4])
    if trip == "agree":
        exchange.agree()
        again = messages.AgreeRequest(exchange.id, exchange.names[:4])
    with pytest.raises(
        ProtocolViolation, match=r"^trip: must follow \w+ of an exchange under way, follows \w+.*AGFL-SECURE-036"
    ):
        getattr(victim, trip)(again)


def test_attack_the_last_trip_is_asked_for_twice_with_other_signers(world: World) -> None:
    victim, exchange = world.owners[VICTIM].half, Attempt(world)
    exchange.share()
    exchange.mask()
    signatures = exchange.agree()
    given = victim.unmask(exchange.unmask_request(dict(list(signatures.items())[:4])))
    assert victim.unmask(exchange.unmask_request(dict(list(signatures.items())[:4]))) == given
    with pytest.raises(ProtocolViolation, match=r"^trip: .*AGFL-SECURE-036"):
        victim.unmask(exchange.unmask_request(signatures))


@pytest.mark.parametrize("trip", ["mask", "agree", "unmask"])
def test_attack_a_trip_is_skipped(world: World, trip: str) -> None:
    victim, exchange = world.owners[VICTIM].half, Attempt(world)
    request = {
        "mask": messages.MaskRequest(exchange.id, exchange.names, (NOTHING,) * 4),
        "agree": messages.AgreeRequest(exchange.id, exchange.names),
        "unmask": messages.UnmaskRequest(exchange.id, exchange.names, (bytes(64),) * 5),
    }[trip]
    stage = {"mask": "Shared", "agree": "Masked", "unmask": "Agreed"}[trip]
    line = rf"^trip: must follow {stage} of an exchange under way, follows Advertised \[AGFL-SECURE-036\]$"
    with pytest.raises(ProtocolViolation, match=line):
        getattr(victim, trip)(request)
