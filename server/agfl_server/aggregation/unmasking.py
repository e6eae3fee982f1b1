"""Server half of the secure sum, without transport: check what clients send, rebuild secrets, take the masks away.

Whoever sends what does not hold is named. Numbers like S5.2 are the checks of SPEC.md.
Legend: U1 sent keys, U2 sent shares, U3 is in the sum; a dealer shared its two secrets, a holder holds such shares.
Source: Bonawitz et al. 2017, ePrint 2017/281, Figure 4, round 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agfl_protocol.secagg import keys, shamir
from agfl_protocol.secagg.context import dealers_context
from agfl_protocol.secagg.errors import require
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.keys import MASK_SHARE, SELF_SHARE
from agfl_protocol.secagg.masks import Mask, pair_mask
from agfl_protocol.secagg.members import Members, check_record
from agfl_protocol.secagg.messages import KeyRecord, SealedShares, UnmaskReply
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import AttemptFailed

# dealer -> holder -> what the dealer sealed for the holder, with its hashes
Dealt = Mapping[str, Mapping[str, SealedShares]]


def check_keys(name: str, record: KeyRecord, ctx0: bytes, roster: SigningRoster, parameters: Parameters) -> None:
    """Check what the client that the transport knows as `name` announces; raises ProtocolViolation."""
    require(
        record.name == name, "AGFL-SECURE-038", f"name: must be {name!r} as registered, got {record.name!r}"
    )  # S1.1
    check_record(record, ctx0, roster, parameters)  # S1.2 to S1.4


def find_shared_keys(records: Mapping[str, KeyRecord]) -> tuple[str, ...]:
    """Return the names that announce a key which is announced twice; all peers would refuse them (S1.5)."""
    uses = Counter(key for record in records.values() for key in (record.channel_key, record.mask_key))
    return tuple(n for n, record in records.items() if uses[record.channel_key] > 1 or uses[record.mask_key] > 1)


def find_too_strict(records: Mapping[str, KeyRecord], minimum: int) -> tuple[str, ...]:
    """Return the names whose min_cohort is more than are left without those that ask for more than they (S1.7).

    Where fewer than `least` are left there will be no sum, and nobody else is named for it.
    """
    left = set(records)
    while len(left) >= minimum and (strict := {name for name in left if records[name].min_cohort > len(left)}):
        left -= strict
    return tuple(name for name in records if name not in left)


@dataclass(frozen=True)
class Recovery:
    """What trip 5 brought, and what follows from it.

    survivors: U3; replies: of those of U3 that answered. blamed collects NAME -> reason while secrets are rebuilt.
    """

    ctx0: bytes
    members: Members
    parameters: Parameters
    dealt: Dealt = field(repr=False)
    survivors: tuple[str, ...]
    replies: Mapping[str, UnmaskReply] = field(repr=False)
    blamed: dict[str, str] = field(default_factory=dict)
    _factors: dict[tuple[int, ...], list[int]] = field(default_factory=dict, repr=False)

    def masks(self) -> list[Mask]:
        """Return the masks that are left in the sum over U3, inverted: adding them opens it.

        Raises:
            AttemptFailed: too few shares, or a dealer's shares do not rebuild what it announced.
        """
        dealers = tuple(self.dealt)
        ctx2 = dealers_context(self.members.ctx1, dealers)
        masks = [Mask(keys.self_seed(self._self_secret(name), ctx2, name), subtract=True) for name in self.survivors]
        for lost in dealers:
            if lost not in self.survivors:
                masks += self._pair_masks(lost, ctx2)
        return masks

    def _pair_masks(self, lost: str, ctx2: bytes) -> list[Mask]:
        """Return what takes away the masks that the survivors share with a dealer whose vector never came."""
        private = X25519PrivateKey.from_private_bytes(self._mask_secret(lost))
        masks = []
        for name in self.survivors:
            secret = keys.agree(private, self.members.records[name].mask_key, name)
            masks.append(pair_mask(keys.pair_seed(secret, ctx2, name, lost), name, lost).inverse())
        return masks

    def _self_secret(self, name: str) -> bytes:
        """Return a survivor's self-mask secret: its own word where it holds, else rebuilt."""
        committed = self.members.records[name].self_commitment
        reply = self.replies.get(name)
        if reply is not None:
            if keys.commitment(reply.self_secret, self.ctx0, name) == committed:  # S5.1
                return reply.self_secret
            self.blamed.setdefault(name, "self_secret: must be what it committed to; it is not")
        secret = self._rebuild(name, SELF_SHARE)
        if keys.commitment(secret, self.ctx0, name) != committed:  # S5.3
            raise self._inconsistent(name, "self_secret")
        return secret

    def _mask_secret(self, name: str) -> bytes:
        secret = self._rebuild(name, MASK_SHARE)
        if keys.public_key(secret) != self.members.records[name].mask_key:  # S5.4
            raise self._inconsistent(name, "mask_key")
        return secret

    def _rebuild(self, dealer: str, kind: str) -> bytes:
        """Return a secret of `dealer` from the first t shares that have the hash that it sent (S5.2)."""
        threshold = self.parameters.threshold
        shares: dict[int, bytes] = {}
        for holder, reply in self.replies.items():
            if len(shares) == threshold:
                break
            if holder == dealer:
                continue
            share = self._share_of(dealer, holder, reply)
            if self._is_committed(share, dealer, holder, kind):
                shares[self.members.points[holder]] = share
            else:
                self.blamed.setdefault(holder, f"shares: must be what {dealer!r} dealt; one is not")
        if len(shares) < threshold:  # S5.5
            line = f"shares of {dealer!r}: must be at least {threshold}, got {len(shares)}"
            raise AttemptFailed("AGFL-ROUND-017", line, self.blamed, frozenset(self.blamed))
        return self._combine(dealer, kind, shares)

    def _is_committed(self, share: bytes, dealer: str, holder: str, kind: str) -> bool:
        """Whether the dealer sent this share's hash. The holder checked it in trip 3, so a wrong share is its own."""
        dealt = self.dealt[dealer][holder]
        committed = dealt.self_hash if kind == SELF_SHARE else dealt.mask_hash
        return keys.share_hash(kind, share, self.members.ctx1, dealer, holder) == committed

    def _combine(self, dealer: str, kind: str, shares: Mapping[int, bytes]) -> bytes:
        points = tuple(shares)
        if points not in self._factors:
            self._factors[points] = shamir.weights(points)
        return shamir.combine(list(shares.values()), self._factors[points])

    def _inconsistent(self, dealer: str, what: str) -> AttemptFailed:
        """Every share has the hash that the dealer sent, yet they do not rebuild what it announced: it lied to all."""
        self.blamed[dealer] = f"{what}: must be what its shares rebuild; it is not"
        return AttemptFailed(
            "AGFL-ROUND-018", f"{dealer!r}: {self.blamed[dealer]}", self.blamed, frozenset(self.blamed)
        )

    def _share_of(self, dealer: str, holder: str, reply: UnmaskReply) -> bytes:
        """Return a holder's share of `dealer`: shares come in the order of U2 without the holder."""
        place, own = self._places[dealer], self._places[holder]
        return reply.shares[place - (place > own)]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.dealt)}
