"""The wire of the secure sum: its messages as Flower records, with exact sizes checked before anything is cut up.

Names travel as one text, one name a line; blocks of fixed size are concatenated. SPEC.md lists every byte.
"""

from __future__ import annotations

import numpy as np
from flwr.app import RecordDict

from agfl_models.errors import WireError
from agfl_protocol.messages.wire import Scalar, SumRequest, new_record, read_bounded, read_scalar, read_vector
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import MAX_COUNTER, ExchangeId, exchange_context
from agfl_protocol.secagg.identity import SIGNATURE_BYTES, SigningRoster
from agfl_protocol.secagg.keys import HASH_BYTES, PUBLIC_KEY_BYTES, SEAL_BYTES, SHARE_HASH_BYTES
from agfl_protocol.secagg.messages import KeyRecord, SealedShares
from agfl_protocol.secagg.parameters import MAX_MEMBERS
from agfl_protocol.secagg.rings import RINGS_BYTES
from agfl_protocol.secagg.shamir import SHARE_BYTES
from agfl_protocol.version import PROTOCOL_VERSION

SHARE, MASK, AGREE, UNMASK = "query.share", "query.mask", "query.agree", "query.unmask"
_MAX_NAME = 64
_RECORD_CUTS = (PUBLIC_KEY_BYTES, PUBLIC_KEY_BYTES, HASH_BYTES, 4, 4, SIGNATURE_BYTES)
_DEALT_CUTS = (2 * SHARE_BYTES + RINGS_BYTES + SEAL_BYTES, SHARE_HASH_BYTES, SHARE_HASH_BYTES)


def exchange_of(request: SumRequest) -> ExchangeId:
    """Return what a request says of itself; raises ProtocolViolation."""
    return ExchangeId(request.run_id, request.round, request.exchange)


def context_of(request: SumRequest, roster: SigningRoster) -> bytes:
    """Return ctx0 of an exchange, as the holder of `roster` sees it."""
    exchange, broadcast = exchange_of(request), request.broadcast_hash
    return exchange_context(PROTOCOL_VERSION, exchange, roster.hash, request.client_plan_hash, broadcast)


def write_advertise_reply(reply: messages.AdvertiseReply) -> RecordDict:
    """Trip 1, client."""
    return _new(reply.exchange, name=reply.record.name, record=pack_record(reply.record))


def read_advertise_reply(record: RecordDict, exchange: ExchangeId) -> messages.AdvertiseReply:
    """Trip 1, server; raises WireError, as all readers do."""
    _check_exchange(record, exchange)
    name = read_scalar(record, "name", str)
    return messages.AdvertiseReply(exchange, unpack_record(name, _read_bytes(record, "record", sum(_RECORD_CUTS))))


def write_share_request(request: messages.ShareRequest) -> RecordDict:
    """Trip 2, server."""
    names = "\n".join(r.name for r in request.records)
    return _new(request.exchange, names=names, records=b"".join(map(pack_record, request.records)))


def read_share_request(record: RecordDict) -> messages.ShareRequest:
    """Trip 2, client."""
    names = _read_names(record)
    blocks = _read_blocks(record, "records", sum(_RECORD_CUTS), len(names))
    records = tuple(unpack_record(name, block) for name, block in zip(names, blocks, strict=True))
    return messages.ShareRequest(_read_exchange(record), records)


def write_share_reply(reply: messages.ShareReply) -> RecordDict:
    """Trip 2, client."""
    return _new(reply.exchange, dealt=pack_dealt(reply.dealt))


def read_share_reply(record: RecordDict, exchange: ExchangeId, count: int) -> messages.ShareReply:
    """Trip 2, server: shares for `count` others."""
    _check_exchange(record, exchange)
    return messages.ShareReply(exchange, _read_dealt(record, count))


def write_mask_request(request: messages.MaskRequest) -> RecordDict:
    """Trip 3, server."""
    return _new(request.exchange, names="\n".join(request.dealers), dealt=pack_dealt(request.dealt))


def read_mask_request(record: RecordDict) -> messages.MaskRequest:
    """Trip 3, client."""
    names = _read_names(record)
    return messages.MaskRequest(_read_exchange(record), names, _read_dealt(record, len(names) - 1))


def write_mask_reply(reply: messages.MaskReply) -> RecordDict:
    """Trip 3, client."""
    return new_record(_head(reply.exchange), {"lanes": reply.lanes})


def read_mask_reply(record: RecordDict, exchange: ExchangeId, num_lanes: int) -> messages.MaskReply:
    """Trip 3, server."""
    _check_exchange(record, exchange)
    return messages.MaskReply(exchange, read_vector(record, "lanes", np.uint64, num_lanes))


def write_agree_request(request: messages.AgreeRequest) -> RecordDict:
    """Trip 4, server."""
    return _new(request.exchange, names="\n".join(request.survivors))


def read_agree_request(record: RecordDict) -> messages.AgreeRequest:
    """Trip 4, client."""
    return messages.AgreeRequest(_read_exchange(record), _read_names(record))


def write_agree_reply(reply: messages.AgreeReply) -> RecordDict:
    """Trip 4, client."""
    return _new(reply.exchange, signature=reply.signature)


def read_agree_reply(record: RecordDict, exchange: ExchangeId) -> messages.AgreeReply:
    """Trip 4, server."""
    _check_exchange(record, exchange)
    return messages.AgreeReply(exchange, _read_bytes(record, "signature", SIGNATURE_BYTES))


def write_unmask_request(request: messages.UnmaskRequest) -> RecordDict:
    """Trip 5, server."""
    return _new(request.exchange, names="\n".join(request.signers), signatures=b"".join(request.signatures))


def read_unmask_request(record: RecordDict) -> messages.UnmaskRequest:
    """Trip 5, client."""
    names = _read_names(record)
    signatures = _read_blocks(record, "signatures", SIGNATURE_BYTES, len(names))
    return messages.UnmaskRequest(_read_exchange(record), names, signatures)


def write_unmask_reply(reply: messages.UnmaskReply) -> RecordDict:
    """Trip 5, client."""
    return _new(reply.exchange, self_secret=reply.self_secret, shares=b"".join(reply.shares))


def read_unmask_reply(record: RecordDict, exchange: ExchangeId, count: int) -> messages.UnmaskReply:
    """Trip 5, server: shares of `count` others."""
    _check_exchange(record, exchange)
    self_secret = _read_bytes(record, "self_secret", SHARE_BYTES)
    return messages.UnmaskReply(exchange, self_secret, _read_blocks(record, "shares", SHARE_BYTES, count))


def _head(exchange: ExchangeId) -> dict[str, Scalar]:
    return {"run_id": exchange.run_id, "round": exchange.round, "exchange": exchange.exchange}


def _new(exchange: ExchangeId, **fields: str | bytes) -> RecordDict:
    return new_record({**_head(exchange), **fields})


def _read_exchange(record: RecordDict) -> ExchangeId:
    round_number = read_bounded(record, "round", 1, MAX_COUNTER - 1)
    exchange = read_bounded(record, "exchange", 0, MAX_COUNTER - 1)
    return ExchangeId(read_scalar(record, "run_id", str), round_number, exchange)


def _check_exchange(record: RecordDict, expected: ExchangeId) -> None:
    got = _read_exchange(record)
    if got != expected:
        raise WireError("AGFL-WIRE-031", f"exchange: must answer {expected}, got {got}")


def _read_bytes(record: RecordDict, key: str, size: int) -> bytes:
    value = read_scalar(record, key, bytes)
    if len(value) != size:
        raise WireError("AGFL-WIRE-032", f"{key}: must be {size} bytes, got {len(value)}")
    return value


def _read_blocks(record: RecordDict, key: str, size: int, count: int) -> tuple[bytes, ...]:
    value = _read_bytes(record, key, size * count)
    return tuple(value[i : i + size] for i in range(0, len(value), size))


def _read_names(record: RecordDict) -> tuple[str, ...]:
    text = read_scalar(record, "names", str)
    if len(text) >= MAX_MEMBERS * (_MAX_NAME + 1):
        raise WireError(
            "AGFL-WIRE-033", f"names: must be at most {MAX_MEMBERS} of at most {_MAX_NAME} characters, got {len(text)}"
        )
    names = tuple(text.split("\n"))
    if len(names) > MAX_MEMBERS or max(map(len, names)) > _MAX_NAME:
        raise WireError(
            "AGFL-WIRE-034", f"names: must be at most {MAX_MEMBERS} of at most {_MAX_NAME} characters, got {len(names)}"
        )
    return names


def pack_record(record: KeyRecord) -> bytes:
    """Return what a client announced, in a fixed size."""
    numbers = record.max_colluders.to_bytes(4, "big") + record.min_cohort.to_bytes(4, "big")
    return b"".join((record.channel_key, record.mask_key, record.self_commitment, numbers, record.signature))


def unpack_record(name: str, block: bytes) -> KeyRecord:
    """Return what `pack_record` packed."""
    channel_key, mask_key, committed, c, min_cohort, signature = _cut(block, _RECORD_CUTS)
    numbers = int.from_bytes(c, "big"), int.from_bytes(min_cohort, "big")
    return KeyRecord(name, channel_key, mask_key, committed, *numbers, signature)


def pack_dealt(dealt: tuple[SealedShares, ...]) -> bytes:
    """Return what a dealer dealt, in a fixed size each."""
    return b"".join(shares.sealed + shares.self_hash + shares.mask_hash for shares in dealt)


def unpack_dealt(blocks: bytes) -> tuple[SealedShares, ...]:
    """Return what `pack_dealt` packed."""
    size = sum(_DEALT_CUTS)
    return tuple(SealedShares(*_cut(blocks[i : i + size], _DEALT_CUTS)) for i in range(0, len(blocks), size))


def pack_opening(reply: messages.UnmaskReply) -> bytes:
    """Return what a client gave in trip 5."""
    return reply.self_secret + b"".join(reply.shares)


def unpack_opening(exchange: ExchangeId, block: bytes) -> messages.UnmaskReply:
    """Return what `pack_opening` packed."""
    pieces = tuple(block[i : i + SHARE_BYTES] for i in range(0, len(block), SHARE_BYTES))
    return messages.UnmaskReply(exchange, pieces[0], pieces[1:])


def _read_dealt(record: RecordDict, count: int) -> tuple[SealedShares, ...]:
    return unpack_dealt(_read_bytes(record, "dealt", sum(_DEALT_CUTS) * count))


def _cut(block: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    parts, start = [], 0
    for size in sizes:
        parts.append(block[start : start + size])
        start += size
    return parts
