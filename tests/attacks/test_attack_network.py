"""An evil network, or a server that forwards what it should not: bytes changed, swapped, late or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from tests.secagg_world import Attempt, MemoryGrid, World, exchange_id

from agfl_models.errors import WireError
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.messages import SealedShares
from agfl_server.aggregation.aggregator import AttemptFailed
from agfl_server.aggregation.unmasking import Recovery

VICTIM, DEALER = "owner-000", "owner-001"
ID = exchange_id()
DO_NOT_OPEN = r"^sealed shares of 'owner-001': .*AGFL-SECURE-007"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(5, tmp_path)


def refuses_shares(world: World, exchange: Attempt, changed: SealedShares, line: str) -> None:
    exchange.dealt[DEALER][VICTIM] = changed
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.mask(exchange.mask_request(VICTIM))


def flip(block: bytes, place: int) -> bytes:
    return block[:place] + bytes([block[place] ^ 1]) + block[place + 1 :]


@pytest.mark.parametrize("place", [0, 31, 32, 63, 64, 65, 80])
def test_attack_one_bit_of_a_ciphertext_is_flipped(world: World, place: int) -> None:
    exchange = Attempt(world)
    exchange.share()
    dealt = exchange.dealt[DEALER][VICTIM]
    refuses_shares(world, exchange, replace(dealt, sealed=flip(dealt.sealed, place)), DO_NOT_OPEN)


@pytest.mark.parametrize("kind", ["self_hash", "mask_hash"])
def test_attack_the_hash_of_a_share_is_changed(world: World, kind: str) -> None:
    """Otherwise an honest holder would be blamed in trip 5 for a share that it was really dealt."""
    exchange = Attempt(world)
    exchange.share()
    dealt = exchange.dealt[DEALER][VICTIM]
    changed = replace(dealt, **{kind: flip(getattr(dealt, kind), 0)})
    line = r"^shares of 'owner-001': .*AGFL-SECURE-033"
    refuses_shares(world, exchange, changed, line)


def test_attack_shares_for_another_holder_are_delivered(world: World) -> None:
    exchange = Attempt(world)
    exchange.share()
    refuses_shares(world, exchange, exchange.dealt[DEALER]["owner-002"], DO_NOT_OPEN)


def test_attack_shares_of_another_dealer_are_delivered(world: World) -> None:
    exchange = Attempt(world)
    exchange.share()
    refuses_shares(world, exchange, exchange.dealt["owner-002"][VICTIM], DO_NOT_OPEN)


def test_attack_the_victims_own_shares_come_back_as_a_peers(world: World) -> None:
    """Both directions of a channel have keys of their own."""
    exchange = Attempt(world)
    exchange.share()
    refuses_shares(world, exchange, exchange.dealt[VICTIM][DEALER], DO_NOT_OPEN)


def test_attack_a_peer_was_shown_another_u1(world: World) -> None:
    """Shares that were dealt among four do not open among five: all holders of a share share one U1."""
    exchange = Attempt(world)
    four = exchange.names[:4]
    exchange.share()
    other = World(world.owners, world.roster, world.parameters)
    split = Attempt(other, 1)
    request = messages.ShareRequest(split.id, tuple(split.records[n] for n in four))
    dealt = world.owners[DEALER].half.share(request).dealt
    for name in ("owner-000", "owner-002", "owner-003", "owner-004"):
        reply = world.owners[name].half.share(split.share_request())
        split.dealt[name] = dict(zip((n for n in split.names if n != name), reply.dealt, strict=True))
    split.dealt[DEALER] = dict(zip((n for n in four if n != DEALER), dealt, strict=True))
    split.dealt = dict(sorted(split.dealt.items()))
    with pytest.raises(ProtocolViolation, match=DO_NOT_OPEN):
        world.owners[VICTIM].half.mask(split.mask_request(VICTIM))


def with_field(content: RecordDict, key: str, value: bytes) -> RecordDict:
    return RecordDict({**content, "config": ConfigRecord({**content.config_records["config"], key: value})})


@pytest.mark.parametrize(
    ("kind", "key"), [(sw.SHARE, "records"), (sw.MASK, "dealt"), (sw.UNMASK, "signatures")], ids=lambda x: str(x)
)
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""], ids=["cut", "more", "none"])
def test_attack_a_block_of_another_length_is_delivered(
    world: World, kind: str, key: str, change: Callable[[bytes], bytes]
) -> None:
    def tamper(k: str, name: str, content: RecordDict) -> RecordDict:
        block = content.config_records["config"].get(key)
        return with_field(content, key, change(block)) if (k, name) == (kind, VICTIM) else content  # type: ignore[arg-type]

    result = world.secure_sum(on_request=tamper)
    assert len(world.owners[VICTIM].log) == 1
    assert world.owners[VICTIM].log[0].startswith(f"{key}: must be ")
    np.testing.assert_array_equal(result.lanes, world.plain_sum(result.survivors))


def test_attack_a_masked_vector_is_changed_on_its_way(world: World) -> None:
    def tamper(kind: str, name: str, content: RecordDict) -> RecordDict:
        if (kind, name) != (sw.MASK, VICTIM):
            return content
        lanes = sw.read_mask_reply(content, ID, 7).lanes + np.uint64(1)
        return sw.write_mask_reply(messages.MaskReply(ID, lanes))

    with pytest.raises(AttemptFailed, match=r"^count: .*got 6.*AGFL-ROUND-014"):
        world.secure_sum(on_reply=tamper)


def test_attack_a_masked_vector_arrives_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulled twice under one message id, it is added once."""
    genuine = MemoryGrid.pull_messages

    def twice(self: MemoryGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for reply in genuine(self, message_ids) for _ in range(2)]

    monkeypatch.setattr(MemoryGrid, "pull_messages", twice)
    result = world.secure_sum()
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


def test_attack_a_vector_that_comes_after_u3_is_never_added(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask key may be rebuilt by then: added, it would be open."""
    late: list[Message] = []
    genuine_pull, added = MemoryGrid.pull_messages, []

    def pull(self: MemoryGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(genuine_pull(self, message_ids))
        held = [r for r in replies if r.metadata.message_type == sw.MASK and r.metadata.src_node_id == self.ids[VICTIM]]
        if held:
            late.extend(held)
            return [r for r in replies if r not in held]
        if replies and replies[0].metadata.message_type in (sw.AGREE, sw.UNMASK):
            added.extend(late)
            return [*late, *replies]  # the late reply comes with those of a later trip
        return replies

    monkeypatch.setattr(MemoryGrid, "pull_messages", pull)
    result = world.secure_sum(timeout_s=0.2)
    assert len(added) >= 2
    assert result.refused == {VICTIM: "no reply to query.mask within 0.2 s"}
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names[1:]))


def test_attack_a_server_that_opens_with_a_wrong_mask_notices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: a wrong mask passes it with probability 2^-64."""
    genuine = Recovery.masks
    monkeypatch.setattr(Recovery, "masks", lambda self: genuine(self)[:-1])
    with pytest.raises(AttemptFailed, match=r"^count: .*got \d{4,}.*AGFL-ROUND-014"):
        world.secure_sum()


def test_attack_a_number_of_names_beyond_memory_is_announced(world: World) -> None:
    huge = sw.write_agree_request(messages.AgreeRequest(ID, ("a" * 64,) * 100_000))
    with pytest.raises(WireError, match=r"^names: must be at most 1024 of at most 64 characters"):
        world.owners[VICTIM].answer(sw.AGREE, huge)
