"""What server and client say to each other in the five trips of an exchange, Mode P (pairwise masks).

Legend: U1 sent keys, U2 sent shares, U3 sent masked vectors (Bonawitz et al. 2017); n = |U1|. Lists over U1, U2 and
U3 are sorted by name; "others" means without the client that the message is for or from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agfl_protocol.secagg.context import ExchangeId, Part
from agfl_protocol.secagg.lanes import Lanes


@dataclass(frozen=True)
class KeyRecord:
    """What a client announces, signed, in an exchange.

    channel_key, mask_key: X25519 public keys, 32 bytes; self_commitment: 32 bytes; signature: 64 bytes.
    max_colluders: c of the owner's policy; all members must go by the same. min_cohort: of the same policy; all members
    go by the largest.
    """

    name: str
    channel_key: bytes
    mask_key: bytes
    self_commitment: bytes
    max_colluders: int
    min_cohort: int
    signature: bytes

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that is said, without the signature."""
        keys = self.channel_key, self.mask_key, self.self_commitment
        return self.name, *keys, self.max_colluders, self.min_cohort


@dataclass(frozen=True)
class SealedShares:
    """A dealer's two shares for one holder and its number of rings: 81 bytes encrypted, then 16 of hash a share."""

    sealed: bytes
    self_hash: bytes
    mask_hash: bytes


@dataclass(frozen=True)
class AdvertiseReply:
    """Trip 1, client to server. The request of this trip is `wire.RoundRequest`."""

    exchange: ExchangeId
    record: KeyRecord


@dataclass(frozen=True)
class ShareRequest:
    """Trip 2, server to client: the records of U1."""

    exchange: ExchangeId
    records: tuple[KeyRecord, ...]


@dataclass(frozen=True)
class ShareReply:
    """Trip 2, client to server: shares for the others of U1."""

    exchange: ExchangeId
    dealt: tuple[SealedShares, ...]


@dataclass(frozen=True)
class MaskRequest:
    """Trip 3, server to client: U2, and what the others of U2 dealt to this client."""

    exchange: ExchangeId
    dealers: tuple[str, ...]
    dealt: tuple[SealedShares, ...]


@dataclass(frozen=True, eq=False)
class MaskReply:
    """Trip 3, client to server: the masked vector, uint64 (num_lanes,)."""

    exchange: ExchangeId
    lanes: Lanes


@dataclass(frozen=True)
class AgreeRequest:
    """Trip 4, server to client: U3, whose vectors are in the sum."""

    exchange: ExchangeId
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class AgreeReply:
    """Trip 4, client to server: the signature over U3, 64 bytes."""

    exchange: ExchangeId
    signature: bytes


@dataclass(frozen=True)
class UnmaskRequest:
    """Trip 5, server to client: members of U3 that signed it, and their signatures. It names no kind of share."""

    exchange: ExchangeId
    signers: tuple[str, ...]
    signatures: tuple[bytes, ...]


@dataclass(frozen=True)
class UnmaskReply:
    """Trip 5, client to server: its own self-mask secret, and one share of each of the others of U2.

    The share is of the self-mask secret where the other is in U3, else of the mask key. 32 bytes each.
    """

    exchange: ExchangeId
    self_secret: bytes = field(repr=False)
    shares: tuple[bytes, ...] = field(repr=False)
