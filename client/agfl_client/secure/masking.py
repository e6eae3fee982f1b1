"""Client half of the secure sum: one function a trip, (state, request) -> (state, reply).

A state is given up for the one that its trip returns. What a client goes by is its own (`Terms`): a request can ask,
never set. Numbers like C2.3 are the checks of SPEC.md. Source: Bonawitz et al. 2017, ePrint 2017/281, Figure 4 with
its consistency check; what differs stands in SPEC.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agfl_client.secure.masking_states import Advertised, Agreed, Finished, HeldShares, Masked, Shared, Terms
from agfl_protocol.plans.groups import is_union
from agfl_protocol.secagg import keys, shamir
from agfl_protocol.secagg.context import dealers_context, survivors_context
from agfl_protocol.secagg.errors import BadShares, require
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, SIGN_KEYS, sign
from agfl_protocol.secagg.keys import MASK_SHARE, SELF_SHARE, share_hash
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import Mask, apply_masks, pair_mask
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
from agfl_protocol.secagg.rings import RINGS_BYTES, check_fillers


def advertise(terms: Terms, lanes: Lanes) -> tuple[Advertised, AdvertiseReply]:
    """Trip 1: draw fresh keys and announce them. `lanes` is given up by the caller: it will be masked in place."""
    channel_key = terms.draws.channel_key()
    mask_secret, self_secret = shamir.random_secret(terms.draws), shamir.random_secret(terms.draws)
    unsigned = KeyRecord(
        name=terms.name,
        channel_key=channel_key.public_key().public_bytes_raw(),
        mask_key=keys.public_key(mask_secret),
        self_commitment=keys.commitment(self_secret, terms.ctx0, terms.name),
        max_colluders=terms.parameters.max_colluders,
        min_cohort=terms.parameters.min_cohort,
        signature=b"",
    )
    record = replace(unsigned, signature=sign(terms.signing_key, SIGN_KEYS, terms.ctx0, *unsigned.parts))
    state = Advertised(terms, record, channel_key, mask_secret, self_secret, lanes)
    return state, AdvertiseReply(terms.exchange, record)


def share(state: Advertised, request: ShareRequest) -> tuple[Shared, ShareReply]:
    """Trip 2: check U1 and deal shares of both secrets to the others of U1. The channel key is dropped.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    terms = state.terms
    members = _check_members(state, request.records)
    others = members.others(terms.name)
    points = [members.points[other] for other in others]
    self_shares = shamir.split(state.self_secret, terms.parameters.threshold, points, terms.draws)
    mask_shares = shamir.split(state.mask_secret, terms.parameters.threshold, points, terms.draws)
    dealt: list[SealedShares] = []
    opening_keys: dict[str, bytes] = {}
    for other, of_self, of_mask in zip(others, self_shares, mask_shares, strict=True):
        secret = keys.agree(state.channel_key, members.records[other].channel_key, other)  # C2.9
        sealing_key = keys.channel_key(secret, members.ctx1, terms.name, other)
        opening_keys[other] = keys.channel_key(secret, members.ctx1, other, terms.name)
        dealt.append(_seal(terms.name, other, members.ctx1, sealing_key, HeldShares(of_self, of_mask, terms.rings)))
    shared = Shared(terms, members, opening_keys, state.mask_secret, state.self_secret, state.lanes)
    return shared, ShareReply(terms.exchange, tuple(dealt))


def mask(state: Shared, request: MaskRequest) -> tuple[Masked, MaskReply]:
    """Trip 3: check U2 and open its shares, mask the lanes in place. Update, mask key and opening keys are dropped.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    terms, members = state.terms, state.members
    # A state serves once: masking its lanes again would give away the masks.
    require(
        state.lanes.flags.writeable, "AGFL-SECURE-022", "lanes: must be masked once; this state was used before"
    )  # C3.0
    # C3.1 to C3.4 and C3.11, before the lanes are touched: U2 alone says whose masks are in them.
    check_survivors("dealers", request.dealers, members.records, "U1", terms, members)
    others = [dealer for dealer in request.dealers if dealer != terms.name]
    held = {
        dealer: _open(dealer, terms.name, members.ctx1, state.opening_keys[dealer], sealed, terms.max_rings)
        for dealer, sealed in zip(others, request.dealt, strict=True)
    }
    if request.dealers == members.names:
        # No other U2: the server could ask each client of another one, and who refuses would tell who fills what.
        _check_fillers(request.dealers, held, terms, members, "U1")  # C3.10
    ctx2 = dealers_context(members.ctx1, request.dealers)
    apply_masks(state.lanes, _masks(state, others, ctx2))
    state.lanes.flags.writeable = False
    return Masked(terms, members, ctx2, held, state.self_secret), MaskReply(terms.exchange, state.lanes)


def agree(state: Masked, request: AgreeRequest) -> tuple[Agreed, AgreeReply]:
    """Trip 4: check U3 and sign it, the only U3 that this client signs in the exchange.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    terms = state.terms
    dealers = {terms.name, *state.held}
    check_survivors("survivors", request.survivors, dealers, "U2", terms, state.members)  # C4.1 to C4.5
    ctx3 = survivors_context(state.ctx2, request.survivors)
    signature = sign(terms.signing_key, SIGN_AGREEMENT, ctx3, terms.name)
    return Agreed(state, request.survivors, ctx3), AgreeReply(terms.exchange, signature)


def unmask(state: Agreed, request: UnmaskRequest) -> tuple[Finished, UnmaskReply]:
    """Trip 5: once a quorum signed this very U3, give the own self-mask secret and one share of each other of U2.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    masked, terms = state.masked, state.masked.terms
    quorum = terms.parameters.quorum(len(masked.members.records))
    check_sorted("signers", request.signers, state.survivors, "U3")  # C5.1, C5.2
    require(
        len(request.signers) >= quorum,
        "AGFL-SECURE-023",
        f"signers: must be at least {quorum}, got {len(request.signers)}",
    )  # C5.3
    for signer, signature in zip(request.signers, request.signatures, strict=True):
        terms.roster.verify(signer, signature, SIGN_AGREEMENT, state.ctx3, signer)  # C5.4
    # Only once a quorum signed this U3, for the same reason: until then each client can be shown another one.
    _check_fillers(state.survivors, masked.held, terms, masked.members, "U3")  # C5.5
    survivors = set(state.survivors)
    shares = [held.of_self if dealer in survivors else held.of_mask for dealer, held in masked.held.items()]
    return Finished(terms.exchange), UnmaskReply(terms.exchange, masked.self_secret, tuple(shares))


def _check_members(state: Advertised, records: Sequence[KeyRecord]) -> Members:
    terms, size = state.terms, len(records)
    check_drawn([record.name for record in records], terms)
    require(
        state.record in records,
        "AGFL-SECURE-024",
        f"members: must hold this client's own record, that of {terms.name!r}",
    )  # C2.3
    for record in records:
        if record.name != terms.name:
            check_record(record, terms.ctx0, terms.roster, terms.parameters)  # C2.6, C2.7
    members = Members.of(terms.ctx0, records)
    least = members.bind(terms.parameters).min_cohort
    require(size >= least, "AGFL-SECURE-026", f"members: must be at least min_cohort = {least}, got {size}")  # C2.4
    announced = [key for record in records for key in (record.channel_key, record.mask_key)]
    require(
        len(set(announced)) == len(announced), "AGFL-SECURE-027", "members: must announce each key once, one came twice"
    )  # C2.8
    return members


def check_drawn(names: Sequence[str], terms: Terms) -> None:
    """Check who is in U1, before anything that its members announced; raises ProtocolViolation."""
    check_sorted("members", names, terms.roster.keys, "the roster")  # C2.1, C2.2
    check_sorted("members", names, terms.drawn, "the plan's draw")  # C2.10
    require(
        len(names) <= terms.max_cohort,
        "AGFL-SECURE-025",
        f"members: must be at most max_cohort = {terms.max_cohort}, got {len(names)}",
    )  # C2.5


def check_survivors(
    what: str, names: Sequence[str], known: Collection[str], whole: str, terms: Terms, members: Members
) -> None:
    """Check U2 within U1, or U3 within U2: sorted, known, this client among them, and enough.

    Raises:
        ProtocolViolation: names the check that failed.
    """
    check_sorted(what, names, known, whole)
    require(terms.name in names, "AGFL-SECURE-028", f"{what}: must hold this client, {terms.name!r}")
    size = len(members.records)
    least = members.bind(terms.parameters).least_survivors(size)
    require(
        len(names) >= least, "AGFL-SECURE-029", f"{what}: must be at least {least} of {size} members, got {len(names)}"
    )
    if terms.groups:
        require(
            is_union(names, terms.groups),
            "AGFL-SECURE-030",
            f"{what}: must be whole groups of the plan in a sum of this kind; they are not",
        )


def check_sorted(what: str, names: Sequence[str], known: Collection[str], whole: str) -> None:
    """Check that names are sorted, distinct, and among those known; raises ProtocolViolation."""
    ascending = all(a < b for a, b in pairwise(names))
    require(ascending, "AGFL-SECURE-031", f"{what}: must be sorted and distinct, got {str(list(names))[:80]}")
    for name in names:
        require(name in known, "AGFL-SECURE-032", f"{what}: must be among {whole}, got {name!r}")


def _seal(dealer: str, holder: str, ctx1: bytes, key: bytes, shares: HeldShares) -> SealedShares:
    rings = shares.rings.to_bytes(RINGS_BYTES, "big")
    return SealedShares(
        keys.seal(key, shares.of_self + shares.of_mask + rings, ctx1, dealer, holder),
        share_hash(SELF_SHARE, shares.of_self, ctx1, dealer, holder),
        share_hash(MASK_SHARE, shares.of_mask, ctx1, dealer, holder),
    )


def _open(dealer: str, holder: str, ctx1: bytes, key: bytes, dealt: SealedShares, max_rings: int) -> HeldShares:
    """Open one dealer's shares (C3.5), which it committed to (C3.6), in the field (C3.7), and its rings (C3.9)."""
    opened = keys.open_sealed(key, dealt.sealed, ctx1, dealer, holder)
    shares, rings = opened[:-RINGS_BYTES], int.from_bytes(opened[-RINGS_BYTES:], "big")
    of_self, of_mask = shares[: shamir.SHARE_BYTES], shares[shamir.SHARE_BYTES :]
    committed = (
        share_hash(SELF_SHARE, of_self, ctx1, dealer, holder) == dealt.self_hash
        and share_hash(MASK_SHARE, of_mask, ctx1, dealer, holder) == dealt.mask_hash
    )
    if not committed:
        raise BadShares("AGFL-SECURE-033", "shares", dealer, "must have the hashes that it sent; they do not")
    if not (shamir.is_canonical(of_self) and shamir.is_canonical(of_mask)):
        raise BadShares("AGFL-SECURE-034", "shares", dealer, "must be below 2^256 - 189; they are not")
    if not 1 <= rings <= max_rings:
        raise BadShares("AGFL-SECURE-035", "rings", dealer, f"must be in [1, {max_rings}]; they are not")
    return HeldShares(of_self, of_mask, rings)


def _check_fillers(
    names: Sequence[str], held: Mapping[str, HeldShares], terms: Terms, members: Members, whole: str
) -> None:
    rings = {name: terms.rings if name == terms.name else held[name].rings for name in names}
    check_filled(rings, terms, members, whole)


def check_filled(rings: Mapping[str, int], terms: Terms, members: Members, whole: str) -> None:
    """Check that no number of rings is that of too few: of all, and in an exact sum of each group's members.

    Raises:
        ProtocolViolation: as `check_fillers`.
    """
    min_cohort = members.bind(terms.parameters).min_cohort
    for group in terms.groups or (tuple(rings),):
        if group[0] in rings:
            check_fillers([rings[name] for name in group], whole, min_cohort)


def _masks(state: Shared, others: Sequence[str], ctx2: bytes) -> list[Mask]:
    """Return this client's masks: its own, and one for each of the others of U2."""
    name = state.terms.name
    private = X25519PrivateKey.from_private_bytes(state.mask_secret)
    masks = [Mask(keys.self_seed(state.self_secret, ctx2, name), subtract=False)]
    for other in others:
        secret = keys.agree(private, state.members.records[other].mask_key, other)  # C3.8
        masks.append(pair_mask(keys.pair_seed(secret, ctx2, name, other), name, other))
    return masks
