"""Evil clients against the real server and their peers: named where they can be, and never a wrong sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from tests.secagg_world import Hook, LanesOnly, MemoryGrid, World, exchange_id, round_request

from agfl_client.secure import masking
from agfl_client.secure.masking_states import HeldShares, Shared
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.messages.secure_wire import context_of
from agfl_protocol.secagg import keys, messages, shamir
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SIGN_KEYS, sign
from agfl_protocol.secagg.messages import KeyRecord
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.rounds.observer import Observer

EVIL, OTHER = "owner-001", "owner-002"
ID = exchange_id()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five owners: c = 1, t = 2, q = 4."""
    return World.of(5, tmp_path)


def reply_of(kind: str, change: Callable[[RecordDict], RecordDict | None], name: str = EVIL) -> Hook:
    """Whatever the evil client really answered in a trip, `change` is what leaves it."""
    return lambda k, n, content: change(content) if (k, n) == (kind, name) else content


def without(world: World, result: CohortSum, line: str) -> None:
    """The sum is exact over all but the evil client, which is refused by `line`."""
    assert EVIL not in result.survivors
    assert set(result.refused) == {EVIL}
    assert result.refused[EVIL] == line
    np.testing.assert_array_equal(result.lanes, world.plain_sum(result.survivors))


def record_with(world: World, content: RecordDict, **changes: object) -> RecordDict:
    """The evil client's record with `changes`, which it signs itself."""
    record = sw.read_advertise_reply(content, ID).record
    changed = replace(record, **changes)  # type: ignore[arg-type]
    ctx0 = context_of(round_request(), world.roster)
    signed = replace(changed, signature=sign(world.owners[EVIL].key, SIGN_KEYS, ctx0, *changed.parts))
    return sw.write_advertise_reply(messages.AdvertiseReply(ID, signed))


# --- trip 1


@pytest.mark.parametrize("key", ["channel_key", "mask_key"])
def test_attack_a_key_of_low_order_is_announced(world: World, key: str) -> None:
    hook = reply_of(wire.TRAIN, lambda content: record_with(world, content, **{key: bytes(32)}))
    result = world.secure_sum(on_reply=hook)
    without(world, result, "public key of 'owner-001': must be a point of full order; it is not [AGFL-SECURE-006]")


def test_attack_a_record_is_announced_under_anothers_name(world: World) -> None:
    hook = reply_of(wire.TRAIN, lambda content: record_with(world, content, name=OTHER))
    result = world.secure_sum(on_reply=hook)
    without(world, result, "name: must be 'owner-001' as registered, got 'owner-002' [AGFL-SECURE-038]")


def test_attack_a_stranger_announces_keys(world: World) -> None:
    """Somebody else's key under a registered name: the transport was tricked, the roster is not."""
    world.owners[EVIL].key = Ed25519PrivateKey.generate()
    hook = reply_of(wire.TRAIN, lambda content: record_with(world, content))
    result = world.secure_sum(on_reply=hook)
    without(
        world,
        result,
        "signature: must be that of 'owner-001' over this exchange (sign/keys); it is not [AGFL-SECURE-005]",
    )


def test_attack_a_smaller_c_is_announced(world: World) -> None:
    hook = reply_of(wire.TRAIN, lambda content: record_with(world, content, max_colluders=2**32 - 1))
    result = world.secure_sum(on_reply=hook)
    without(world, result, "max_colluders: must be 1 as here, 'owner-001' has 4294967295 [AGFL-SECURE-008]")


def test_attack_two_clients_announce_the_same_key(tmp_path: Path) -> None:
    world = World.of(6, tmp_path, max_colluders=1)
    seen: dict[str, KeyRecord] = {}

    def copies(kind: str, name: str, content: RecordDict) -> RecordDict:
        if kind != wire.TRAIN:
            return content
        if name == EVIL:  # it is told the first one's key by the first one
            return record_with(world, content, mask_key=seen["owner-000"].mask_key)
        seen[name] = sw.read_advertise_reply(content, ID).record
        return content

    result = world.secure_sum(on_reply=copies)
    line = "keys: must be this client's alone; another announced one of them"
    assert result.refused == {"owner-000": line, EVIL: line}
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names[2:]))


# --- trip 2
CONVICTED = r"^'owner-001': shares: .*AGFL-ROUND-015"


def garbage(content: RecordDict) -> RecordDict:
    dealt = sw.read_share_reply(content, ID, 4).dealt
    return sw.write_share_reply(messages.ShareReply(ID, tuple(replace(s, sealed=bytes(81)) for s in dealt)))


def test_attack_shares_that_nobody_can_open_are_dealt(world: World) -> None:
    """More holders than may collude say so of one dealer, which proves it; who said so is refused for nothing."""
    with pytest.raises(AttemptFailed, match=CONVICTED) as failed:
        world.secure_sum(on_reply=reply_of(sw.SHARE, garbage))
    assert failed.value.guilty == failed.value.refused.keys() == {EVIL}
    assert failed.value.is_spent
    honest = [name for name in world.names if name != EVIL]
    for name in honest:
        line = f"sealed shares of 'owner-001': must open for '{name}' in this exchange; they do not [AGFL-SECURE-007]"
        assert world.owners[name].log == [line]


def test_attack_shares_with_hashes_of_others_are_dealt(world: World) -> None:
    def swapped(content: RecordDict) -> RecordDict:
        dealt = sw.read_share_reply(content, ID, 4).dealt
        return sw.write_share_reply(messages.ShareReply(ID, tuple(replace(s, self_hash=s.mask_hash) for s in dealt)))

    with pytest.raises(AttemptFailed, match=CONVICTED):
        world.secure_sum(on_reply=reply_of(sw.SHARE, swapped))
    line = "shares of 'owner-001': must have the hashes that it sent; they do not [AGFL-SECURE-033]"
    assert world.owners[OTHER].log == [line]


def deal(world: World, monkeypatch: pytest.MonkeyPatch, lie: Callable[[HeldShares], HeldShares]) -> None:
    """The evil client seals, and commits to, `lie` of each pair of shares."""
    genuine = masking._seal

    def evil(dealer: str, holder: str, ctx1: bytes, key: bytes, shares: HeldShares) -> messages.SealedShares:
        return genuine(dealer, holder, ctx1, key, lie(shares) if dealer == EVIL else shares)

    monkeypatch.setattr(masking, "_seal", evil)


def test_attack_shares_outside_the_field_are_dealt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    deal(world, monkeypatch, lambda shares: replace(shares, of_mask=b"\xff" * 32))
    with pytest.raises(AttemptFailed, match=CONVICTED):
        world.secure_sum()
    assert world.owners[OTHER].log == [
        "shares of 'owner-001': must be below 2^256 - 189; they are not [AGFL-SECURE-034]"
    ]


def accuses(dealer: str) -> Callable[[str, str, RecordDict], RecordDict | None]:
    """EVIL answers trip 3 with what an honest holder says of a bad dealer."""

    def hook(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        if (kind, name) == (sw.MASK, EVIL):
            raise ProtocolViolation(
                "AGFL-SECURE-000", f"shares of {dealer!r}: must have the hashes that it sent; they do not"
            )
        return content

    return hook


@pytest.mark.parametrize("dealer", [OTHER, EVIL, "mallory"])
def test_attack_no_more_holders_than_may_collude_accuse_a_dealer(world: World, dealer: str) -> None:
    """The accusers are lost; nobody is proven to have lied, however often the same ones say so."""
    for exchange in range(3):
        result = world.secure_sum(round_request(exchange=exchange), on_reply=accuses(dealer))
        assert result.refused.keys() == {EVIL}
        assert len(result.survivors) == 4


def test_attack_a_dealer_spoils_the_shares_of_one_holder_each_time(world: World) -> None:
    """What holders say adds up over exchanges: two of them are more than may collude."""
    parameters, victims = world.parameters, iter(["owner-002", "owner-003"])
    aggregator = SecureSum(Observer(), world.roster, parameters, 30.0, num_threads=1)

    def spoil() -> Callable[[str, str, RecordDict], RecordDict | None]:
        victim = next(victims)

        def hook(kind: str, name: str, content: RecordDict) -> RecordDict | None:
            if (kind, name) != (sw.SHARE, EVIL):
                return content
            dealt = list(sw.read_share_reply(content, exchange_id(number), 4).dealt)
            place = [other for other in world.names if other != EVIL].index(victim)
            dealt[place] = replace(dealt[place], sealed=bytes(81))
            return sw.write_share_reply(messages.ShareReply(exchange_id(number), tuple(dealt)))

        return hook

    for number in range(2):
        grid = MemoryGrid(world.owners, None, spoil())
        args = grid, grid.ids, round_request(exchange=number), LanesOnly(7), 30.0
        if number == 0:
            assert aggregator.sum(*args).refused == {
                "owner-002": "says that it cannot use what 'owner-001' sealed for it: one of the two is wrong"
            }
        else:
            with pytest.raises(AttemptFailed, match=r"^'owner-001': shares: .*, 2 say that they are not") as failed:
                aggregator.sum(*args)
            assert failed.value.guilty == {EVIL}


@pytest.mark.parametrize(
    ("lie", "lost_in", "what"),
    [
        (lambda s: replace(s, of_self=shamir.random_secret()), sw.UNMASK, "self_secret"),
        (lambda s: replace(s, of_mask=shamir.random_secret()), sw.MASK, "mask_key"),
    ],
    ids=["self secret", "mask key"],
)
def test_attack_committed_shares_that_rebuild_something_else_are_dealt(
    world: World, monkeypatch: pytest.MonkeyPatch, lie: Callable[[HeldShares], HeldShares], lost_in: str, what: str
) -> None:
    """The dealer is proven guilty, and the server says so; no sum can be opened without its secret."""
    deal(world, monkeypatch, lie)
    with pytest.raises(AttemptFailed, match=rf"^'owner-001': {what}: must be what its shares rebuild") as failed:
        world.secure_sum(on_reply=reply_of(lost_in, lambda content: None))
    assert failed.value.guilty == {EVIL}
    assert failed.value.refused[EVIL] == f"{what}: must be what its shares rebuild; it is not"


def test_attack_too_few_shares_are_dealt(world: World) -> None:
    def three(content: RecordDict) -> RecordDict:
        return sw.write_share_reply(messages.ShareReply(ID, sw.read_share_reply(content, ID, 4).dealt[:3]))

    result = world.secure_sum(on_reply=reply_of(sw.SHARE, three))
    without(world, result, "dealt: must be 452 bytes, got 339 [AGFL-WIRE-032]")


# --- trip 3


@pytest.mark.parametrize("size", [0, 6, 8])
def test_attack_a_vector_of_another_length_is_sent(world: World, size: int) -> None:
    vector = np.zeros(size, np.uint64)
    hook = reply_of(sw.MASK, lambda content: sw.write_mask_reply(messages.MaskReply(ID, vector)))
    result = world.secure_sum(on_reply=hook)
    without(world, result, f"lanes: must be uint64 of shape (7,), got uint64 of shape ({size},) [AGFL-WIRE-044]")


def test_attack_a_vector_of_another_type_is_sent(world: World) -> None:
    vector = np.full(7, np.nan)
    hook = reply_of(
        sw.MASK,
        lambda content: wire.new_record({"run_id": "run", "round": 1, "exchange": 0}, {"lanes": vector}),
    )
    result = world.secure_sum(on_reply=hook)
    without(world, result, "lanes: must be uint64 of shape (7,), got float64 of shape (7,) [AGFL-WIRE-044]")


@pytest.mark.parametrize("count", [0, 2, 2**63])
def test_attack_a_client_counts_as_more_or_less_than_one(world: World, count: int) -> None:
    """Masks hide who did it; the canary keeps the sum from being used."""
    world.owners[EVIL].vector[0] = count
    with pytest.raises(AttemptFailed, match=rf"^count: .*got {(4 + count) % 2**64}.*AGFL-ROUND-014"):
        world.secure_sum()


def test_attack_a_client_masks_with_keys_it_did_not_announce(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = masking._masks

    def evil(state: Shared, others: list[str], ctx2: bytes) -> object:
        own = replace(state, mask_secret=bytes(32)) if state.terms.name == EVIL else state
        return genuine(own, others, ctx2)

    monkeypatch.setattr(masking, "_masks", evil)
    with pytest.raises(AttemptFailed, match=r"^count: .*got \d+.*AGFL-ROUND-014"):
        world.secure_sum()


# --- trips 4 and 5


def test_attack_another_u3_is_signed(world: World) -> None:
    hook = reply_of(sw.AGREE, lambda content: sw.write_agree_reply(messages.AgreeReply(ID, bytes(64))))
    result = world.secure_sum(on_reply=hook)
    line = "signature: must be that of 'owner-001' over this exchange (sign/agreement); it is not [AGFL-SECURE-005]"
    assert result.refused == {EVIL: line}
    assert EVIL in result.survivors  # its vector was added before, and is opened with its peers' shares
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


def opening(content: RecordDict) -> messages.UnmaskReply:
    return sw.read_unmask_reply(content, ID, 4)


def test_attack_a_wrong_self_secret_is_given(world: World) -> None:
    hook = reply_of(sw.UNMASK, lambda content: sw.write_unmask_reply(replace(opening(content), self_secret=bytes(32))))
    result = world.secure_sum(on_reply=hook)
    assert result.refused == {EVIL: "self_secret: must be what it committed to; it is not"}
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


@pytest.mark.parametrize("share", [bytes(32), b"\xff" * 32, shamir.random_secret()], ids=["zero", "ones", "random"])
def test_attack_wrong_shares_are_given(world: World, share: bytes) -> None:
    """owner-000 is lost after its vector came, so its secret is rebuilt from shares."""

    def evil(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        if (kind, name) == (sw.UNMASK, "owner-000"):
            return None
        if (kind, name) == (sw.UNMASK, EVIL):
            return sw.write_unmask_reply(replace(opening(content), shares=(share,) * 4))
        return content

    result = world.secure_sum(on_reply=evil)
    assert result.refused == {
        "owner-000": "disconnected",
        EVIL: "shares: must be what 'owner-000' dealt; one is not",
    }
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


def test_attack_so_many_wrong_shares_that_too_few_are_left(tmp_path: Path) -> None:
    world = World.of(3, tmp_path)

    def evil(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        if (kind, name) == (sw.UNMASK, "owner-000"):
            return None
        if (kind, name) == (sw.UNMASK, EVIL):
            reply = sw.read_unmask_reply(content, ID, 2)
            return sw.write_unmask_reply(replace(reply, shares=(bytes(32),) * 2))
        return content

    with pytest.raises(AttemptFailed, match=r"^shares of 'owner-000': .*got 1.*AGFL-ROUND-017") as failed:
        world.secure_sum(on_reply=evil)
    assert failed.value.guilty == {EVIL}


def test_attack_a_reply_for_another_attempt_is_sent(world: World) -> None:
    def stale(content: RecordDict) -> RecordDict:
        fields = {**content.config_records["config"], "exchange": 9}
        return RecordDict({**content, "config": ConfigRecord(fields)})

    result = world.secure_sum(on_reply=reply_of(sw.MASK, stale))
    line = "exchange: must answer run run round 1 exchange 0, got run run round 1 exchange 9 [AGFL-WIRE-031]"
    without(world, result, line)


def test_attack_c_colluders_pool_their_shares(tmp_path: Path) -> None:
    """c shares of a secret fit every secret alike."""
    world = World.of(10, tmp_path)
    secret, points = shamir.random_secret(), [8, 9, 10]
    shares = shamir.split(secret, world.parameters.threshold, points)
    assert len(points) == world.parameters.max_colluders
    assert shamir.combine(shares, shamir.weights(points)) != secret
    factors = shamir.weights([*points, 1])
    guesses = {shamir.combine([*shares, n.to_bytes(32, "big")], factors) for n in range(1000)}
    assert len(guesses) == 1000


def test_attack_the_hash_of_one_attempts_secret_is_no_good_in_another(world: World) -> None:
    one, two = (context_of(round_request(exchange=a), world.roster) for a in (0, 1))
    secret = shamir.random_secret()
    assert keys.commitment(secret, one, EVIL) != keys.commitment(secret, two, EVIL)
    assert keys.commitment(secret, one, EVIL) != keys.commitment(secret, one, OTHER)
