"""An evil server between honest clients lies about who they are and what keys they announced (trips 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from tests.secagg_world import Attempt, Half, World, count_request, exchange_id, round_request

from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_models.errors import IdentityError
from agfl_protocol.messages.secure_wire import context_of
from agfl_protocol.messages.wire import RoundRequest, SumRequest
from agfl_protocol.secagg.context import frame
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, SIGN_KEYS, SigningRoster, sign
from agfl_protocol.secagg.messages import KeyRecord
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.transforms.quantization import QuantizationPlan

NOT_SIGNED = r"^signature: .*AGFL-SECURE-005"
VICTIM, PEER = "owner-000", "owner-001"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(5, tmp_path)


def refuses_members(world: World, exchange: Attempt, changes: Mapping[str, KeyRecord], line: str) -> None:
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.share(exchange.share_request(changes))


def resigned(world: World, record: KeyRecord, key: Ed25519PrivateKey, exchange: int = 0) -> KeyRecord:
    """The record under another signature, as `key` makes it."""
    ctx0 = context_of(round_request(exchange=exchange), world.roster)
    return replace(record, signature=sign(key, SIGN_KEYS, ctx0, *record.parts))


def new_public_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.mark.parametrize(
    "forge",
    [
        lambda record: replace(record, channel_key=new_public_key()),
        lambda record: replace(record, mask_key=new_public_key()),
        lambda record: replace(record, self_commitment=bytes(32)),
        lambda record: replace(record, max_colluders=2),
        lambda record: replace(record, min_cohort=4),
        lambda record: replace(record, signature=bytes(64)),
        lambda record: replace(record, channel_key=record.mask_key, mask_key=record.channel_key),
    ],
    ids=["channel key", "mask key", "commitment", "max_colluders", "min_cohort", "signature", "keys swapped"],
)
def test_attack_anything_in_a_peers_record_is_replaced(world: World, forge: Callable[[KeyRecord], KeyRecord]) -> None:
    exchange = Attempt(world)
    refuses_members(world, exchange, {PEER: forge(exchange.records[PEER])}, NOT_SIGNED)


def test_attack_a_peers_keys_are_signed_by_the_server_itself(world: World) -> None:
    exchange = Attempt(world)
    forged = replace(exchange.records[PEER], channel_key=new_public_key(), mask_key=new_public_key())
    refuses_members(world, exchange, {PEER: resigned(world, forged, Ed25519PrivateKey.generate())}, NOT_SIGNED)


def test_attack_a_peers_keys_are_signed_by_a_colluder(world: World) -> None:
    exchange = Attempt(world)
    forged = replace(exchange.records[PEER], channel_key=new_public_key())
    refuses_members(world, exchange, {PEER: resigned(world, forged, world.owners["owner-004"].key)}, NOT_SIGNED)


def test_attack_a_colluders_record_comes_under_a_peers_name(world: World) -> None:
    exchange = Attempt(world)
    refuses_members(world, exchange, {PEER: replace(exchange.records["owner-004"], name=PEER)}, NOT_SIGNED)


def test_attack_a_sybil_outside_the_roster_joins(world: World) -> None:
    exchange = Attempt(world)
    sybil = replace(exchange.records[PEER], name="owner-005", channel_key=new_public_key(), mask_key=new_public_key())
    sybil = resigned(world, sybil, Ed25519PrivateKey.generate())
    line = r"^members: .*got 'owner-005'.*AGFL-SECURE-032"
    refuses_members(world, exchange, {"owner-005": sybil}, line)


def test_attack_the_server_adds_itself_to_the_roster(world: World, tmp_path: Path) -> None:
    """Peers that were given another roster sign another context."""
    fed = {"server": Ed25519PrivateKey.generate(), **{name: owner.key for name, owner in world.owners.items()}}
    roster = SigningRoster({name: key.public_key() for name, key in fed.items()})
    (tmp_path / "fed").mkdir()
    misled = Half(SecureMember(PEER, fed[PEER], roster, Policy(), tmp_path / "fed"))
    exchange = Attempt(world)
    record = misled.begin(round_request(), np.zeros(7, np.uint64)).record
    refuses_members(world, exchange, {PEER: record}, NOT_SIGNED)


def test_attack_a_colluder_announces_a_peers_channel_key_as_its_own(world: World) -> None:
    exchange = Attempt(world)
    copied = replace(exchange.records["owner-004"], channel_key=exchange.records[PEER].channel_key)
    signed = resigned(world, copied, world.owners["owner-004"].key)
    line = r"^members: .*AGFL-SECURE-027"
    refuses_members(world, exchange, {"owner-004": signed}, line)


def test_attack_a_colluder_announces_the_victims_mask_key_as_its_own(world: World) -> None:
    exchange = Attempt(world)
    copied = replace(exchange.records["owner-004"], mask_key=exchange.records[VICTIM].mask_key)
    signed = resigned(world, copied, world.owners["owner-004"].key)
    refuses_members(world, exchange, {"owner-004": signed}, r"^members: .*AGFL-SECURE-027")


def test_attack_a_colluder_announces_a_smaller_c(world: World) -> None:
    exchange = Attempt(world)
    lower = resigned(world, replace(exchange.records[PEER], max_colluders=0), world.owners[PEER].key)
    refuses_members(world, exchange, {PEER: lower}, r"^max_colluders: .*AGFL-SECURE-008")


@pytest.mark.parametrize("min_cohort", [0, 2, 6, 2**32 - 1])
def test_attack_a_colluder_announces_a_min_cohort_that_no_policy_can_have(world: World, min_cohort: int) -> None:
    exchange = Attempt(world)
    other = resigned(world, replace(exchange.records[PEER], min_cohort=min_cohort), world.owners[PEER].key)
    line = rf"^min_cohort: must be in \[3, 5\], 'owner-001' has {min_cohort} \[AGFL-SECURE-009\]$"
    refuses_members(world, exchange, {PEER: other}, line)


@pytest.mark.parametrize("field", ["channel_key", "mask_key"])
@pytest.mark.parametrize("point", [0, 1, 2**255 - 20])
def test_attack_a_colluder_announces_a_key_of_low_order(world: World, point: int, field: str) -> None:
    """Everybody would know the secret that such a key agrees on."""
    exchange = Attempt(world)
    change: dict[str, Any] = {field: point.to_bytes(32, "little")}
    weak = replace(exchange.records[PEER], **change)
    line = r"^public key of 'owner-001': .*AGFL-SECURE-006"
    refuses_members(world, exchange, {PEER: resigned(world, weak, world.owners[PEER].key)}, line)


@pytest.mark.parametrize("field", ["channel_key", "mask_key"])
@pytest.mark.parametrize("copied", [VICTIM, PEER])
def test_attack_a_colluder_announces_a_copied_key_in_its_second_form(world: World, copied: str, field: str) -> None:
    """X25519 drops the highest bit, so this is the same key to everybody, but other bytes than the ones copied."""
    exchange = Attempt(world)
    key = getattr(exchange.records[copied], field)
    twin = key[:31] + bytes([key[31] | 0x80])
    private = X25519PrivateKey.generate()
    one, two = (private.exchange(X25519PublicKey.from_public_bytes(form)) for form in (key, twin))
    assert one == two
    record = resigned(world, replace(exchange.records["owner-004"], **{field: twin}), world.owners["owner-004"].key)
    refuses_members(world, exchange, {"owner-004": record}, r"AGFL-SECURE-006")


NEUTRAL = bytes([1]) + bytes(31)  # y = 1


def test_attack_an_owner_whose_key_is_the_neutral_element_is_signed_for_by_everybody() -> None:
    """R = 0, S = 0 is a signature of this key under every message: 64 of 64 without any secret."""
    key = Ed25519PublicKey.from_public_bytes(NEUTRAL)
    for number in range(64):
        key.verify(NEUTRAL + bytes(32), frame(SIGN_AGREEMENT, number.to_bytes(32, "big"), VICTIM))
    with pytest.raises(IdentityError, match=r"^owners\.mallory: Ed25519 public key: .*AGFL-IDENTITY-026"):
        SigningRoster({"alice": Ed25519PrivateKey.generate().public_key(), "mallory": key})


def test_attack_the_victims_own_record_is_replaced(world: World) -> None:
    exchange = Attempt(world)
    own = resigned(world, replace(exchange.records[VICTIM], mask_key=new_public_key()), world.owners[VICTIM].key)
    line = r"^members: .*AGFL-SECURE-024"
    refuses_members(world, exchange, {VICTIM: own}, line)


def test_attack_the_victim_is_left_out_of_u1(world: World) -> None:
    exchange = Attempt(world)
    del exchange.records[VICTIM]
    refuses_members(world, exchange, {}, r"^members: .*AGFL-SECURE-024")


def test_attack_members_come_twice_or_out_of_order(world: World) -> None:
    for exchange_number, order in enumerate(((0, 1, 1, 2, 3), (1, 0, 2, 3, 4))):
        exchange = Attempt(world, exchange_number)
        records = list(exchange.records.values())
        request = replace(exchange.share_request(), records=tuple(records[i] for i in order))
        with pytest.raises(ProtocolViolation, match=r"^members: .*got \['owner-00.*AGFL-SECURE-031"):
            world.owners[VICTIM].half.share(request)


def test_attack_a_cohort_smaller_than_the_owners_min_cohort(tmp_path: Path) -> None:
    world = World.of(5, tmp_path, min_cohort=4)
    exchange = Attempt(world)
    for name in ("owner-003", "owner-004"):
        del exchange.records[name]
    refuses_members(world, exchange, {}, r"^members: must be at least min_cohort = 4, got 3.*AGFL-SECURE-026")


def test_attack_a_cohort_smaller_than_another_owners_min_cohort(world: World) -> None:
    """The victim asks for three; one of the others asks for five, and the victim helps it."""
    world.owners[PEER].half.member._parameters = Parameters(1, 5)
    exchange = Attempt(world)
    del exchange.records["owner-004"]
    refuses_members(world, exchange, {}, r"^members: must be at least min_cohort = 5, got 4.*AGFL-SECURE-026")


def test_attack_a_cohort_of_the_victim_and_colluders_only(tmp_path: Path) -> None:
    """With c of them the sum would be the victim's own vector; min_cohort is c + 2 whatever the server says."""
    world = World.of(9, tmp_path)
    exchange = Attempt(world)
    for name in world.names[4:]:
        del exchange.records[name]
    refuses_members(world, exchange, {}, r"^members: must be at least min_cohort = 5, got 4.*AGFL-SECURE-026")


@pytest.mark.parametrize(
    "config", ['{"aggregation": {"min_cohort": 1}}', '{"max_colluders": 0, "threshold": 1, "quorum": 1}']
)
def test_attack_no_configuration_lowers_what_protects_the_owner(world: World, config: str) -> None:
    lowered = replace(round_request(), client_plan=config)
    exchange = Attempt(world, requests=dict.fromkeys(world.names, lowered))
    for name in world.names[2:]:
        del exchange.records[name]
    refuses_members(world, exchange, {}, r"^members: must be at least min_cohort = 3, got 2.*AGFL-SECURE-026")


def test_attack_fields_that_a_cohort_overflows(world: World) -> None:
    """More clients than the plan's max_cohort could carry from one field into the next."""
    request = round_request(max_cohort=4)
    exchange = Attempt(world, requests=dict.fromkeys(world.names, request))
    refuses_members(world, exchange, {}, r"^members: must be at most max_cohort = 4, got 5.*AGFL-SECURE-025")


BASE = round_request()


@pytest.mark.parametrize(
    "told",
    [
        replace(BASE, model=np.array([0.5, -1.25, 3.1e-8], np.float32)),
        replace(BASE, plan_hash="b" * 64),
        replace(BASE, client_plan="{} "),
        replace(BASE, evaluate=True),
        replace(BASE, train=False),
        replace(BASE, full=True),
        replace(BASE, arrays={"scaffold": {"control": np.zeros(3, np.float32)}}),
        replace(BASE, arrays={"scaffold": {"used": np.zeros(0, np.int64)}}),
        replace(BASE, arrays={"elastic": {"by_tier": np.array([1, 1], np.uint8)}}),
        replace(BASE, plan=QuantizationPlan(3, 1000)),
        replace(BASE, plan=QuantizationPlan(2, 999)),
    ],
    ids=[
        "model",
        "plan",
        "config",
        "evaluate",
        "train",
        "full",
        "control",
        "used",
        "rings",
        "fields",
        "max_cohort",
    ],
)
def test_attack_one_client_is_told_something_else(world: World, told: RoundRequest) -> None:
    """Pasquini et al. 2021: another model for the victim alone would open its update in the sum."""
    exchange = Attempt(world, requests={PEER: told})
    refuses_members(world, exchange, {}, NOT_SIGNED)
    with pytest.raises(ProtocolViolation, match=r"^signature: must be that of 'owner-000' over this exchange"):
        world.owners[PEER].half.share(exchange.share_request())


COUNTED = count_request()
MERGES = np.array(COUNTED.merges, np.uint32)


@pytest.mark.parametrize(
    "told",
    [
        replace(COUNTED, merges=(*COUNTED.merges[:1], (259, 100))),
        replace(COUNTED, num_new=2),
        replace(COUNTED, max_cohort=999),
        replace(COUNTED, plan_hash="b" * 64),
        replace(COUNTED, client_plan="{} "),
        replace(BASE, train=False, model=MERGES.reshape(-1).view(np.float32)),
        replace(BASE, train=False, plan=QuantizationPlan(1, 1000), model=MERGES.reshape(-1).view("f4")),
    ],
    ids=["merges", "new merges", "max_cohort", "plan", "config", "a round", "a round with equal bytes"],
)
def test_attack_one_client_is_asked_to_count_something_else(world: World, told: SumRequest) -> None:
    """Whoever counts other pairs, or trains instead, has other masks."""
    exchange = Attempt(world, requests={**dict.fromkeys(world.names, COUNTED), PEER: told})
    ctx0 = {context_of(request, world.roster) for request in (COUNTED, told)}
    assert len(ctx0) == 2
    refuses_members(world, exchange, {}, NOT_SIGNED)
    with pytest.raises(ProtocolViolation, match=r"^signature: must be that of 'owner-000' over this exchange"):
        world.owners[PEER].half.share(exchange.share_request())


def test_attack_a_signature_for_another_purpose_is_shown_as_one_over_keys(world: World) -> None:
    exchange = Attempt(world)
    record = exchange.records[PEER]
    ctx0 = context_of(round_request(), world.roster)
    signed = sign(world.owners[PEER].key, SIGN_AGREEMENT, ctx0, *record.parts)
    refuses_members(world, exchange, {PEER: replace(record, signature=signed)}, NOT_SIGNED)


def test_attack_keys_of_another_attempt_round_or_run_are_shown_again(world: World) -> None:
    old = Attempt(world, 0).records[PEER]
    exchange = Attempt(world, 1)
    refuses_members(world, exchange, {PEER: old}, NOT_SIGNED)
    assert exchange.id == exchange_id(1)
