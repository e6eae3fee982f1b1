"""What a client keeps between the trips of an exchange: one type a stage, so that no stage can be skipped.

No state shows a secret when it is printed. `Terms` is the client's own word; no message changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.draws import OS_DRAWS, Draws
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.messages import KeyRecord
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.secagg.rings import MAX_RINGS


@dataclass(frozen=True)
class Terms:
    """What this client goes by in an exchange.

    max_cohort: clients for which the fields of a lane have room; rings: how many of an elastic model its lanes fill;
    max_rings: the most that the broadcast has anybody fill.
    drawn: who may be in U1. groups: of which U2 and U3 must be whole ones; none where any of U1 will do.
    draws: where its secrets come from.
    """

    name: str
    signing_key: Ed25519PrivateKey = field(repr=False)
    roster: SigningRoster = field(repr=False)
    parameters: Parameters
    exchange: ExchangeId
    max_cohort: int
    ctx0: bytes
    drawn: frozenset[str] = frozenset()
    groups: tuple[tuple[str, ...], ...] = ()
    rings: int = field(default=1, repr=False)
    max_rings: int = field(default=MAX_RINGS, repr=False)
    draws: Draws = field(default=OS_DRAWS, repr=False)

    def __post_init__(self) -> None:
        assert 1 <= self.rings <= self.max_rings <= MAX_RINGS


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
    """After trip 2. opening_keys: of what each of the others of U1 seals for this client."""

    terms: Terms
    members: Members
    opening_keys: Mapping[str, bytes] = field(repr=False)
    mask_secret: bytes = field(repr=False)
    self_secret: bytes = field(repr=False)
    lanes: Lanes = field(repr=False)


@dataclass(frozen=True)
class HeldShares:
    """One dealer's shares of its two secrets, 32 bytes each, and how many rings it says that it fills."""

    of_self: bytes = field(repr=False)
    of_mask: bytes = field(repr=False)
    rings: int = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """After trip 3. held: the shares of the others of U2, sorted by dealer."""

    terms: Terms
    members: Members
    ctx2: bytes
    held: Mapping[str, HeldShares] = field(repr=False)
    self_secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Agreed:
    """After trip 4. survivors: U3, fixed for good."""

    masked: Masked
    survivors: tuple[str, ...]
    ctx3: bytes

    @property
    def terms(self) -> Terms:
        """As in the states before."""
        return self.masked.terms


@dataclass(frozen=True)
class Finished:
    """After trip 5: nothing secret is left."""

    exchange: ExchangeId


State = Advertised | Shared | Masked | Agreed
