"""Client half of the secure sum: one function a trip, (state, request) -> (state, reply).

Each state has a type of its own that only the trip before it returns, so no trip can be skipped; whoever holds a state
gives it up for the next. What a client goes by is in `Terms` and is its own: a request can ask, never set.
Numbers like C2.3 are the checks of SPEC.md. Source: Bonawitz et al. 2017, ePrint 2017/281, Figure 4 with the
consistency round; what differs stands in SPEC.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agfl_protocol.secagg import keys, shamir
from agfl_protocol.secagg.context import AttemptId, dealers_context, survivors_context
from agfl_protocol.secagg.errors import require
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, SIGN_KEYS, SigningRoster, sign
from agfl_protocol.secagg.keys import MASK_SHARE, SELF_SHARE
from agfl_protocol.secagg.masks import Lanes, Mask, apply_masks, pair_mask
from agfl_protocol.secagg.members import Members, check_record
from agfl_protocol.secagg.messages import (
    AdvertiseReply,
    AgreeReply,
    AgreeRequest,
    KeyRecord,
    MaskReply,
    MaskRequest,
    SealedShares,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
)
from agfl_protocol.secagg.parameters import Parameters


@dataclass(frozen=True)
class Terms:
    """What this client goes by in an attempt. max_cohort: clients for which the fields of a lane have room."""

    name: str
    signing_key: Ed25519PrivateKey = field(repr=False)
    roster: SigningRoster
    parameters: Parameters
    attempt: AttemptId
    max_cohort: int
    ctx0: bytes


@dataclass(frozen=True)
class Advertised:
    """After trip 1."""

    terms: Terms
    record: KeyRecord
    channel_key: X25519PrivateKey = field(repr=False)
    mask_secret: bytes = field(repr=False)
    self_secret: bytes = field(repr=False)
    lanes: Lanes = field(repr=False)


@dataclass(frozen=True)
class Shared:
    """After trip 2. opening_keys: of what each of the others seals for this client."""

    terms: Terms
    members: Members
    opening_keys: Mapping[str, bytes] = field(repr=False)
    mask_secret: bytes = field(repr=False)
    self_secret: bytes = field(repr=False)
    lanes: Lanes = field(repr=False)


@dataclass(frozen=True)
class HeldShares:
    """A dealer's shares of its two secrets, 32 bytes each."""

    of_self: bytes = field(repr=False)
    of_mask: bytes = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """After trip 3. held: the shares of the others of U2."""

    terms: Terms
    members: Members
    ctx2: bytes
    held: Mapping[str, HeldShares] = field(repr=False)
    self_secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Agreed:
    """After trip 4. survivors: U3, from now on fixed."""

    masked: Masked
    survivors: tuple[str, ...]
    ctx3: bytes


@dataclass(frozen=True)
class Finished:
    """After trip 5: nothing secret is left."""

    attempt: AttemptId


def advertise(terms: Terms, lanes: Lanes) -> tuple[Advertised, AdvertiseReply]:
    """Trip 1: draw fresh keys and announce them. `lanes` is given up by the caller: it will be masked in place."""
    channel_key = X25519PrivateKey.generate()
    mask_secret, self_secret = shamir.random_secret(), shamir.random_secret()
    unsigned = KeyRecord(
        name=terms.name,
        channel_key=channel_key.public_key().public_bytes_raw(),
        mask_key=keys.public_key(mask_secret),
        self_commitment=keys.commitment(self_secret, terms.ctx0, terms.name),
        max_colluders=terms.parameters.max_colluders,
        signature=b"",
    )
    record = replace(unsigned, signature=sign(terms.signing_key, SIGN_KEYS, terms.ctx0, *unsigned.parts))
    state = Advertised(terms, record, channel_key, mask_secret, self_secret, lanes)
    return state, AdvertiseReply(terms.attempt, record)


def share(state: Advertised, request: ShareRequest) -> tuple[Shared, ShareReply]:
    """Trip 2: check U1, share both secrets among the others of U1; the channel key is dropped.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    terms = state.terms
    _check_members(state, request.records)
    members = Members.of(terms.ctx0, request.records)
    others = members.others(terms.name)
    points = [members.points[other] for other in others]
    threshold = terms.parameters.threshold
    self_shares = shamir.split(state.self_secret, threshold, points)
    mask_shares = shamir.split(state.mask_secret, threshold, points)
    dealt: list[SealedShares] = []
    opening_keys: dict[str, bytes] = {}
    for other, of_self, of_mask in zip(others, self_shares, mask_shares, strict=True):
        secret = keys.agree(state.channel_key, members.records[other].channel_key, other)
        dealt.append(_deal(terms.name, other, members.ctx1, secret, HeldShares(of_self, of_mask)))
        opening_keys[other] = keys.channel_key(secret, members.ctx1, other, terms.name)
    shared = Shared(terms, members, opening_keys, state.mask_secret, state.self_secret, state.lanes)
    return shared, ShareReply(terms.attempt, tuple(dealt))


def mask(state: Shared, request: MaskRequest) -> tuple[Masked, MaskReply]:
    """Trip 3: check U2 and its shares, mask the lanes in place; update, mask key and opening keys are dropped.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    terms, members = state.terms, state.members
    _check_names("dealers", request.dealers, members.records, "U1", terms, len(members.records))
    others = [dealer for dealer in request.dealers if dealer != terms.name]
    require(len(request.dealt) == len(others), f"dealt: must be {len(others)} pairs, got {len(request.dealt)}")  # C3.2
    held = {
        dealer: _open(dealer, terms.name, members.ctx1, state.opening_keys[dealer], sealed)
        for dealer, sealed in zip(others, request.dealt, strict=True)
    }
    ctx2 = dealers_context(members.ctx1, request.dealers)
    # A state serves once: masking its lanes again would give away the difference of the masks.
    require(state.lanes.flags.writeable, "lanes: must be masked once; this state was used before")  # C3.5
    apply_masks(state.lanes, _masks(state, others, ctx2))
    state.lanes.flags.writeable = False
    return Masked(terms, members, ctx2, held, state.self_secret), MaskReply(terms.attempt, state.lanes)


def agree(state: Masked, request: AgreeRequest) -> tuple[Agreed, AgreeReply]:
    """Trip 4: check U3 and sign it, the only one that this client signs in the attempt.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    terms = state.terms
    dealers = {terms.name, *state.held}
    _check_names("survivors", request.survivors, dealers, "U2", terms, len(state.members.records))
    ctx3 = survivors_context(state.ctx2, request.survivors)
    signature = sign(terms.signing_key, SIGN_AGREEMENT, ctx3, terms.name)
    return Agreed(state, request.survivors, ctx3), AgreeReply(terms.attempt, signature)


def unmask(state: Agreed, request: UnmaskRequest) -> tuple[Finished, UnmaskReply]:
    """Trip 5: once a quorum signed the same U3, give the own self-mask secret and one share of each other of U2.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    masked, terms = state.masked, state.masked.terms
    quorum = terms.parameters.quorum(len(masked.members.records))
    _check_sorted("signers", request.signers, state.survivors, "U3")  # C5.1
    require(len(request.signers) >= quorum, f"signers: must be at least {quorum}, got {len(request.signers)}")  # C5.2
    for signer, signature in zip(request.signers, request.signatures, strict=True):
        terms.roster.verify(signer, signature, SIGN_AGREEMENT, state.ctx3, signer)  # C5.3
    survivors = set(state.survivors)
    shares = [
        shares.of_self if dealer in survivors else shares.of_mask for dealer, shares in masked.held.items()
    ]
    return Finished(terms.attempt), UnmaskReply(terms.attempt, masked.self_secret, tuple(shares))


def _check_members(state: Advertised, records: Sequence[KeyRecord]) -> None:
    """C2.1 to C2.7."""
    terms = state.terms
    names = [record.name for record in records]
    _check_sorted("members", names, terms.roster.keys, "the roster")  # C2.1
    require(state.record in records, f"members: must hold this client's own record of {terms.name!r}")  # C2.2
    least = terms.parameters.min_cohort
    require(len(records) >= least, f"members: must be at least min_cohort = {least}, got {len(records)}")  # C2.3
    require(len(records) <= terms.max_cohort, f"members: must be at most {terms.max_cohort}, got {len(records)}")  # C2.4
    for record in records:
        check_record(record, terms.ctx0, terms.roster, terms.parameters)  # C2.5, C2.6
    announced = [key for record in records for key in (record.channel_key, record.mask_key)]
    require(len(set(announced)) == len(announced), "members: must announce every key once, one came twice")  # C2.7


def _check_names(
    field_name: str, names: Sequence[str], known: Collection[str], whole: str, terms: Terms, members: int
) -> None:
    """C3.1 and C4.1: names are sorted, known, not too few, and this client is among them."""
    _check_sorted(field_name, names, known, whole)
    require(terms.name in names, f"{field_name}: must hold this client, {terms.name!r}")
    least = terms.parameters.least_survivors(members)
    require(len(names) >= least, f"{field_name}: must be at least {least} of {members} members, got {len(names)}")


def _check_sorted(field_name: str, names: Sequence[str], known: Collection[str], whole: str) -> None:
    ascending = all(a < b for a, b in zip(names, names[1:], strict=False))
    require(ascending, f"{field_name}: must be sorted and distinct, got {', '.join(names)[:80]}")
    for name in names:
        require(name in known, f"{field_name}: must be among {whole}, got {name!r}")
