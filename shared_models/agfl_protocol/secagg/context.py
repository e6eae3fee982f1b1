"""Canonical encoding and the context chain: what everybody must agree on is in the salt of every derived key.

ctx0 names the exchange and all that was broadcast in it, ctx1 adds U1 and its keys, ctx2 adds U2, ctx3 adds U3.
Whoever was told something else has other contexts, hence other masks: its vector stays noise to all others. This is
the defense against model inconsistency (Pasquini et al. 2021, arXiv:2111.07380).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.secagg.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agfl_protocol.secagg.messages import KeyRecord

PREFIX = "agfl/secagg/v1/"
RUN_ID_RULE = r"[A-Za-z0-9._-]{1,64}"
MAX_COUNTER = 2**31  # of rounds, and of exchanges

Part = bytes | str | int
_LENGTH = struct.Struct(">Q")


def frame(label: str, *parts: Part) -> bytes:
    """Return the canonical encoding of a labeled list: each item is its length in 8 bytes, big-endian, and itself.

    The first item is PREFIX + label. Text is UTF-8, an integer in [0, 2^64) is 8 bytes big-endian. Two lists of the
    same kind never have the same encoding.
    """
    items = [(PREFIX + label).encode(), *map(_encode, parts)]
    return b"".join([piece for item in items for piece in (_LENGTH.pack(len(item)), item)])


def digest(label: str, *parts: Part) -> bytes:
    """Return the SHA-256 (32 bytes) of `frame`."""
    return hashlib.sha256(frame(label, *parts)).digest()


@dataclass(frozen=True, order=True)
class ExchangeId:
    """Names one exchange of a run; no exchange has two numbers, and no number two rounds.

    Raises:
        ProtocolViolation: a field is out of its range.
    """

    run_id: str
    round: int
    exchange: int

    def __post_init__(self) -> None:
        named = re.fullmatch(RUN_ID_RULE, self.run_id) is not None
        require(named, "AGFL-SECURE-001", f"run_id: must match {RUN_ID_RULE}, got {self.run_id[:80]!r}")
        require(
            1 <= self.round < MAX_COUNTER, "AGFL-SECURE-002", f"round: must be in [1, {MAX_COUNTER}), got {self.round}"
        )
        require(
            0 <= self.exchange < MAX_COUNTER,
            "AGFL-SECURE-003",
            f"exchange: must be in [0, {MAX_COUNTER}), got {self.exchange}",
        )

    def __str__(self) -> str:
        return f"run {self.run_id} round {self.round} exchange {self.exchange}"


@dataclass(frozen=True)
class Broadcast:
    """All that the first request says and that every client of an exchange must have received alike.

    model: float32 (d,); arrays: what methods broadcast beside it, each of one dimension, by name.
    """

    plan_hash: str
    client_plan: str
    train: bool = field(kw_only=True)
    evaluate: bool = field(kw_only=True)
    full: bool = field(kw_only=True)
    fields_per_lane: int
    max_cohort: int
    model: NDArray[np.float32]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def hash(self) -> bytes:
        """SHA-256 of the broadcast."""
        return digest(
            "broadcast",
            self.plan_hash,
            self.client_plan,
            int(self.train),
            int(self.evaluate),
            int(self.full),
            self.fields_per_lane,
            self.max_cohort,
            _hash_array(self.model, "<f4"),
            len(self.arrays),
            *(part for name, array in sorted(self.arrays.items()) for part in _named(name, array)),
        )


@dataclass(frozen=True)
class CountBroadcast:
    """As `Broadcast`, of a request to count pairs. merges: uint32 (2m,), left and right of each in turn."""

    plan_hash: str
    client_plan: str
    num_new: int
    max_cohort: int
    merges: NDArray[np.uint32]

    @property
    def hash(self) -> bytes:
        """SHA-256 of the broadcast."""
        return digest(
            "broadcast/counts",
            self.plan_hash,
            self.client_plan,
            self.num_new,
            self.max_cohort,
            _hash_array(self.merges, "<u4"),
        )


def exchange_context(
    protocol_version: int, exchange: ExchangeId, roster_hash: bytes, client_plan_hash: str, broadcast_hash: bytes
) -> bytes:
    """Return ctx0."""
    return digest(
        "ctx0",
        protocol_version,
        exchange.run_id,
        exchange.round,
        exchange.exchange,
        roster_hash,
        client_plan_hash,
        broadcast_hash,
    )


def members_context(ctx0: bytes, records: Iterable[KeyRecord]) -> bytes:
    """Return ctx1: `records` of U1 sorted by name, with everything that they say and sign."""
    parts = [part for record in records for part in record.parts]
    return digest("ctx1", ctx0, *parts)


def dealers_context(ctx1: bytes, dealers: Sequence[str]) -> bytes:
    """Return ctx2: `dealers` is U2, sorted."""
    return digest("ctx2", ctx1, *dealers)


def survivors_context(ctx2: bytes, survivors: Sequence[str]) -> bytes:
    """Return ctx3, over which the survivors sign: `survivors` is U3, sorted."""
    return digest("ctx3", ctx2, *survivors)


def _encode(part: Part) -> bytes:
    if isinstance(part, bytes):
        return part
    return part.encode() if isinstance(part, str) else _LENGTH.pack(part)


def _named(name: str, array: NDArray[Any]) -> tuple[str, str, bytes]:
    """Return a name, the name of the type, and the hash of the numbers, little-endian."""
    return name, array.dtype.name, _hash_array(array, array.dtype.newbyteorder("<").str)


def _hash_array(array: NDArray[np.generic], dtype: str) -> bytes:
    """Return the SHA-256 of the numbers, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype).data).digest()
