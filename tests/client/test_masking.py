"""Laws of the client's state machine: linear, fresh keys every time, and nothing secret is left when it is over."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from tests.secagg_world import Attempt, Owner, World, exchange_id, round_request

from agfl_client.ledger.ledger_file import LEDGER_FILE
from agfl_client.policy import Policy
from agfl_client.secure import masking, secure_member
from agfl_client.secure.masking_states import Advertised, Agreed, Finished, Masked, Shared, Terms
from agfl_client.secure.secure_member import SecureMember, _name_of
from agfl_models.errors import IdentityError, WireError
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages.secure_wire import MASK, SHARE
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.members import Members

EXCHANGE = exchange_id()
Secrets = dict[str, bytes]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(3, tmp_path)


def first(world: World) -> Owner:
    return world.owners[world.names[0]]


def states_of(owner: Owner) -> object:
    return owner.half.state


# --- linear


@pytest.mark.parametrize(("trip", "stage"), [("mask", "Shared"), ("agree", "Masked"), ("unmask", "Agreed")])
def test_no_other_trip_can_come_first(world: World, trip: str, stage: str) -> None:
    exchange, owner = Attempt(world), first(world)
    shares = (messages.SealedShares(bytes(81), bytes(16), bytes(16)),) * 2
    requests = {
        "mask": messages.MaskRequest(EXCHANGE, exchange.names, shares),
        "agree": messages.AgreeRequest(EXCHANGE, exchange.names),
        "unmask": messages.UnmaskRequest(EXCHANGE, exchange.names, (bytes(64),) * 3),
    }
    line = rf"^trip: must follow {stage} of an exchange under way, follows Advertised.*AGFL-SECURE-036"
    with pytest.raises(ProtocolViolation, match=line):
        getattr(owner.half, trip)(requests[trip])
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Advertised .*, follows nothing.*AGFL-SECURE-036"):
        owner.half.share(exchange.share_request())  # the exchange is over for good


def answered(world: World, trip: str) -> RecordDict:
    """Lead all through a trip; return what the first owner was asked in it."""
    exchange, owner = Attempt(world), first(world)
    exchange.share()
    if trip == "share":
        return sw.write_share_request(exchange.share_request())
    exchange.mask()
    if trip == "mask":
        return sw.write_mask_request(exchange.mask_request(owner.name))
    request = exchange.unmask_request(exchange.agree())
    if trip == "agree":
        return sw.write_agree_request(messages.AgreeRequest(exchange.id, exchange.names))
    owner.half.unmask(request)
    return sw.write_unmask_request(request)


@pytest.mark.parametrize("trip", ["share", "mask", "agree", "unmask"])
def test_the_identical_request_gets_the_identical_bytes_as_often_as_it_comes(
    world: World, tmp_path: Path, trip: str
) -> None:
    """A server that lost a reply gets that reply again, of which nothing is noted: nothing new has left."""
    record, member = answered(world, trip), first(world).half.member
    state, ledger = member._state, (tmp_path / first(world).name / LEDGER_FILE).read_bytes()
    assert member._last is not None
    once = member._last.reply.deflate()
    for _ in range(3):
        assert getattr(member, trip)(record).deflate() == once
    assert member._state is state
    assert (tmp_path / first(world).name / LEDGER_FILE).read_bytes() == ledger


def test_the_identical_first_request_gets_the_identical_keys(world: World) -> None:
    owner = first(world)
    once = owner.half.announce(round_request(), owner.vector.copy())
    assert owner.half.announce(round_request(), owner.vector.copy()).deflate() == once.deflate()
    later = round_request(exchange=1)
    assert owner.half.announce(later, owner.vector.copy()).deflate() != once.deflate()
    with pytest.raises(ProtocolViolation, match=r"^exchange: .*AGFL-SECURE-013"):
        owner.half.announce(round_request(), owner.vector.copy())


@pytest.mark.parametrize("trip", ["share", "mask", "agree", "unmask"])
def test_any_other_request_of_a_trip_that_was_answered_is_refused_and_ends_the_exchange(
    world: World, trip: str
) -> None:
    record, member = answered(world, trip), first(world).half.member
    changed = RecordDict({"config": ConfigRecord({**record.config_records["config"], "more": 0})})
    stage = {"share": "Shared", "mask": "Masked", "agree": "Agreed", "unmask": "nothing"}[trip]
    for asked, found in ((changed, stage), (record, "nothing")):
        with pytest.raises(
            ProtocolViolation, match=rf"^trip: must follow \w+ of an exchange .*, follows {found}.*AGFL-SECURE-036"
        ):
            getattr(member, trip)(asked)
    assert states_of(first(world)) is None


def test_a_reply_is_given_again_until_it_is_old(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record, member, now = answered(world, "unmask"), first(world).half.member, time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + secure_member.KEPT_S - 60)
    member.unmask(record)
    monkeypatch.setattr(time, "monotonic", lambda: now + secure_member.KEPT_S + 60)
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Agreed .*, follows nothing.*AGFL-SECURE-036"):
        member.unmask(record)


def whole(world: World, exchange: int = 0) -> messages.UnmaskRequest:
    """Lead all through trip 4; return the request of trip 5."""
    led = Attempt(world, exchange)
    led.share()
    led.mask()
    return led.unmask_request(led.agree())


def test_the_last_trip_is_the_last(world: World) -> None:
    request = whole(world)
    first(world).half.unmask(request)
    other = replace(request, signers=request.signers[::-1])
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Agreed .*, follows nothing.*AGFL-SECURE-036"):
        first(world).half.unmask(other)


def test_a_message_of_another_attempt_ends_the_one_under_way(world: World) -> None:
    exchange = Attempt(world)
    stale = replace(exchange.share_request(), exchange=exchange_id(7))
    line = r"^exchange: .*got run run round 1 exchange 7.*AGFL-SECURE-037"
    with pytest.raises(ProtocolViolation, match=line):
        first(world).half.share(stale)
    assert states_of(first(world)) is None


def test_a_message_that_cannot_be_read_ends_the_attempt(world: World) -> None:
    exchange = Attempt(world)
    with pytest.raises(WireError, match=r"^names: .*got NoneType.*AGFL-WIRE-040"):
        first(world).half.member.share(sw.write_agree_reply(messages.AgreeReply(exchange.id, bytes(64))))
    assert states_of(first(world)) is None


def test_a_new_exchange_ends_the_one_before_and_a_refused_one_does_not(world: World) -> None:
    old, new = Attempt(world, 0), Attempt(world, 1)
    with pytest.raises(ProtocolViolation, match=r"^exchange: .*AGFL-SECURE-013"):
        first(world).half.begin(round_request(exchange=0), first(world).vector.copy())
    new.share()
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Advertised .*, follows Shared.*AGFL-SECURE-036"):
        first(world).half.share(old.share_request())


def test_a_state_masks_once(world: World) -> None:
    """Masking the same lanes a second time would give the masks away."""
    exchange = Attempt(world)
    exchange.share()
    request = exchange.mask_request(first(world).name)
    state = states_of(first(world))
    assert isinstance(state, Shared)
    masking.mask(state, request)
    with pytest.raises(ProtocolViolation, match=r"^lanes: .*AGFL-SECURE-022"):
        masking.mask(state, request)


# --- fresh, and gone


def test_each_attempt_has_keys_of_its_own(world: World) -> None:
    name = first(world).name
    one, two = Attempt(world, 0).records[name], Attempt(world, 1).records[name]
    for part in ("channel_key", "mask_key", "self_commitment", "signature"):
        assert getattr(one, part) != getattr(two, part)


def reachable(root: object) -> Iterator[object]:
    """Every object that `root` holds on to, itself included, modules and classes aside."""
    seen: dict[int, object] = {}
    queue = [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ in ("module", "function"):
            continue
        seen[id(item)] = item
        yield item
        queue += gc.get_referents(item)


def secrets_of(state: object) -> Secrets:
    assert isinstance(state, Advertised | Shared | Masked | Agreed)
    base = state.masked if isinstance(state, Agreed) else state
    found = {"self_secret": base.self_secret}
    if isinstance(base, Advertised | Shared):
        found["mask_secret"] = base.mask_secret
        found["update"] = base.lanes.tobytes()
    if isinstance(base, Shared):
        found |= {f"opening key of {n}": key for n, key in base.opening_keys.items()}
    if isinstance(base, Masked):
        for name, held in base.held.items():
            found |= {f"self share of {name}": held.of_self, f"mask share of {name}": held.of_mask}
    return found


def holds(root: object, secret: bytes) -> bool:
    for item in reachable(root):
        content = item.tobytes() if isinstance(item, np.ndarray) else item
        if isinstance(content, bytes | bytearray) and secret in content:
            return True
    return False


def test_secrets_are_dropped_as_soon_as_they_are_used(world: World) -> None:
    owner = first(world)
    exchange = Attempt(world)
    after = {"share": secrets_of(states_of(owner))}
    exchange.share()
    after["mask"] = secrets_of(states_of(owner))
    exchange.mask()
    after["agree"] = secrets_of(states_of(owner))
    all_secrets = {**after["share"], **after["mask"], **after["agree"]}
    assert set(after["agree"]) == {"self_secret"} | {
        f"{kind} share of {n}" for kind in ("self", "mask") for n in world.names[1:]
    }
    for gone in set(all_secrets) - set(after["agree"]):
        assert not holds(owner.half, all_secrets[gone]), gone
    assert holds(owner.half, all_secrets["self_secret"])  # the search does find what is there

    owner.half.unmask(exchange.unmask_request(exchange.agree()))
    assert states_of(owner) is None
    given = {"self_secret", *(f"self share of {n}" for n in world.names[1:])}  # to the server, which may lose it
    for name, secret in all_secrets.items():
        assert holds(owner.half, secret) == (name in given), name
    owner.half.member.forget()
    for name, secret in all_secrets.items():
        assert not holds(owner.half, secret), name


def test_what_was_given_to_open_a_sum_goes_with_the_next_exchange(world: World) -> None:
    owner, request = first(world), whole(world)
    state = states_of(owner)
    owner.half.unmask(request)
    secrets = secrets_of(state)
    del state
    assert holds(owner.half, secrets["self_secret"])
    owner.half.begin(round_request(exchange=1), owner.vector.copy())
    assert not any(holds(owner.half, secret) for secret in secrets.values())


def test_the_last_state_holds_nothing_but_the_attempts_name(world: World) -> None:
    request = whole(world)
    state = states_of(first(world))
    assert isinstance(state, Agreed)
    finished, _ = masking.unmask(state, request)
    assert finished == Finished(EXCHANGE)
    assert vars(finished) == {"exchange": EXCHANGE}


def test_a_refusal_drops_the_secrets(world: World) -> None:
    exchange = Attempt(world)
    owner = first(world)
    secrets = secrets_of(states_of(owner))
    with pytest.raises(ProtocolViolation):
        owner.half.share(messages.ShareRequest(exchange.id, tuple(exchange.records.values())[1:]))
    assert not any(holds(owner.half, secret) for secret in secrets.values())


def test_no_state_prints_a_secret(world: World) -> None:
    owner, exchange = first(world), Attempt(world)
    printed: list[str] = []
    secrets: list[bytes] = []

    def note() -> None:
        printed.append(repr(states_of(owner)))
        secrets.extend(secrets_of(states_of(owner)).values())

    note()
    exchange.share()
    note()
    exchange.mask()
    note()
    exchange.agree()
    note()
    for text in printed:
        assert "rings" not in text
        for secret in secrets:
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text
    opening = messages.UnmaskReply(EXCHANGE, b"own secret", (b"share",))
    assert "secret'" not in repr(opening)
    assert "share'" not in repr(opening)


def test_the_update_is_masked_where_it_lies(world: World) -> None:
    """No copy of the update is left when its masked form leaves."""
    owner, exchange = first(world), Attempt(world)
    state = states_of(owner)
    assert isinstance(state, Advertised)
    exchange.share()
    masked = exchange.mask()[owner.name]
    np.testing.assert_array_equal(state.lanes, masked)
    assert not np.array_equal(masked, owner.vector)
    assert not state.lanes.flags.writeable


# --- the owner's own terms


def test_a_roster_without_this_owner_is_refused(world: World, tmp_path: Path) -> None:
    one, two = (world.owners[name] for name in world.names[:2])
    with pytest.raises(IdentityError, match=r"AGFL-IDENTITY-039"):
        SecureMember(one.name, two.key, world.roster, Policy(), tmp_path)
    with pytest.raises(
        IdentityError, match=r"'stranger', holds owner-000, owner-001, owner-002 \[AGFL-IDENTITY-038\]$"
    ):
        SecureMember("stranger", one.key, world.roster, Policy(), tmp_path)


def test_the_context_is_made_of_the_clients_own_words(world: World) -> None:
    owner = first(world)
    owner.half.begin(round_request(max_cohort=9), owner.vector.copy())
    state = states_of(owner)
    assert isinstance(state, Advertised)
    assert isinstance(state.terms, Terms)
    assert (state.terms.name, state.terms.roster, state.terms.parameters) == (
        owner.name,
        world.roster,
        world.parameters,
    )
    assert state.terms.max_cohort == 9


def test_members_are_the_same_in_whatever_order_records_come(world: World) -> None:
    records = tuple(Attempt(world).records.values())
    assert Members.of(b"x", records) == Members.of(b"x", records[::-1])
    assert Members.of(b"x", records).points == {name: i for i, name in enumerate(world.names, 1)}


def test_a_request_is_named_by_all_of_it_and_by_nothing_else() -> None:
    def record(name: str = "config", size: int = 3, **changed: Any) -> RecordDict:
        arrays = ArrayRecord({"x": Array(np.arange(size, dtype=np.uint64))})
        return RecordDict({name: ConfigRecord({"n": 1, "text": "a", **changed}), "arrays": arrays})

    requests = [record(), record(n=2), record(more=1), record("\ud800"), record(size=4), record(n=True), RecordDict()]
    names = [_name_of(kind, request) for request in requests for kind in (SHARE, MASK)]
    assert len(set(names)) == len(names)
    assert _name_of(SHARE, record()) == _name_of(SHARE, record())
