"""A node's part in secure sums: its identity among the owners, and the state of the one exchange under way.

The secrets of an exchange live here, in the memory of the node's process, and nowhere else; they are dropped after the
last trip, and as soon as any check fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from agfl_client.ledger.ledger import Ledger
from agfl_client.ledger.ledger_state import Asked
from agfl_client.policy import Policy
from agfl_client.secure import masking
from agfl_client.secure.masking_states import Advertised, Agreed, Finished, Masked, Shared, State, Terms
from agfl_models.errors import IdentityError
from agfl_protocol.messages import secure_wire
from agfl_protocol.messages.secure_wire import AGREE, MASK, SHARE, UNMASK
from agfl_protocol.messages.wire import SumRequest
from agfl_protocol.secagg.context import ExchangeId, digest
from agfl_protocol.secagg.draws import OS_DRAWS, Draws
from agfl_protocol.secagg.errors import require
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.messages import (
    AgreeReply,
    AgreeRequest,
    MaskReply,
    MaskRequest,
    UnmaskReply,
    UnmaskRequest,
)
from agfl_protocol.secagg.rings import MAX_RINGS

KEPT_S = 3600.0  # how long a reply is kept for a server that has lost it


class _OfExchange(Protocol):
    @property
    def exchange(self) -> ExchangeId: ...


StateT = TypeVar("StateT", Advertised, Shared, Masked, Agreed)
RequestT = TypeVar("RequestT", bound=_OfExchange)
ReplyT = TypeVar("ReplyT")


class SecureMember:
    """One owner as a member of the pinned roster.

    name, signing_key: who this is; roster: every owner, from the file that was handed over out of band; folder: where
    the answered exchanges are remembered; draws: where the secrets of an exchange come from.

    Raises:
        IdentityError: the roster does not hold this name with this key.
        ConfigError: the roster is too small, or the policy asks for what it cannot give.
    """

    def __init__(
        self,
        name: str,
        signing_key: Ed25519PrivateKey,
        roster: SigningRoster,
        policy: Policy,
        folder: Path,
        draws: Draws = OS_DRAWS,
    ) -> None:
        if name not in roster:
            raise IdentityError(
                "AGFL-IDENTITY-038", f"--roster: must hold this node, {name!r}, holds {', '.join(sorted(roster.keys))}"
            )
        if roster.keys[name].public_bytes_raw() != signing_key.public_key().public_bytes_raw():
            raise IdentityError(
                "AGFL-IDENTITY-039", f"--roster: must hold the signing key of this node, {name!r}; it holds another"
            )
        self._name, self._signing_key, self._roster = name, signing_key, roster
        self._parameters = policy.parameters(len(roster))
        self._policy, self._draws = policy, draws
        self.ledger = Ledger(folder, name)
        self._state: State | None = None
        self._last: _Answered | None = None

    @property
    def names(self) -> frozenset[str]:
        """Every owner in the roster."""
        return frozenset(self._roster.keys)

    @property
    def roster_hash(self) -> bytes:
        """SHA-256 of the roster that this owner holds."""
        return self._roster.hash

    @property
    def min_cohort(self) -> int:
        """This owner's own."""
        return self._parameters.min_cohort

    def answered(self, request: SumRequest) -> RecordDict | None:
        """Return the reply to this very request, if it is the last thing that was answered: the server has lost it."""
        return self._again(secure_wire.context_of(request, self._roster))

    def check(self, request: SumRequest, rules: SumRules) -> None:
        """Check that this exchange may be answered, before any text is touched, and forget the one before it.

        Raises:
            ProtocolViolation: this exchange or a later one was answered; the one under way is kept.
        """
        self.ledger.check_announce(secure_wire.exchange_of(request), self._policy, rules.asked.stage)
        self.forget()

    def forget(self) -> None:
        """Drop the secrets of the exchange under way, if there is one."""
        self._state = self._last = None

    def advertise(self, request: SumRequest, rules: SumRules, lanes: Lanes, rings: int = 1) -> RecordDict:
        """Trip 1, with the lanes that will be masked. The exchange is in the ledger before this returns.

        rings: how many rings of an elastic model the lanes fill, in [1, MAX_RINGS]; the other members are told.

        Raises:
            ProtocolViolation: the exchange was answered before.
        """
        terms = self._announced(request, rules, rings)
        self._state, reply = masking.advertise(terms, lanes)
        return self._remember(terms.ctx0, secure_wire.write_advertise_reply(reply))

    def _announced(self, request: SumRequest, rules: SumRules, rings: int) -> Terms:
        """Note the exchange in the ledger; return what this owner goes by in it."""
        exchange = secure_wire.exchange_of(request)
        self.ledger.announce(exchange, rules.asked, self._policy)
        return Terms(
            self._name,
            self._signing_key,
            self._roster,
            self._parameters,
            exchange,
            request.max_cohort,
            secure_wire.context_of(request, self._roster),
            rules.drawn,
            rules.groups,
            rings,
            rules.max_rings,
            self._draws,
        )

    def share(self, record: RecordDict) -> RecordDict:
        """Trip 2; as the later ones, raises WireError or ProtocolViolation and then forgets the exchange."""
        return self._advance(
            SHARE, record, Advertised, secure_wire.read_share_request, masking.share, secure_wire.write_share_reply
        )

    def mask(self, record: RecordDict) -> RecordDict:
        """Trip 3: the vector leaves, and the ledger says so before."""
        return self._advance(
            MASK, record, Shared, secure_wire.read_mask_request, self._mask, secure_wire.write_mask_reply
        )

    def agree(self, record: RecordDict) -> RecordDict:
        """Trip 4."""
        return self._advance(
            AGREE, record, Masked, secure_wire.read_agree_request, self._agree, secure_wire.write_agree_reply
        )

    def unmask(self, record: RecordDict) -> RecordDict:
        """Trip 5; nothing secret is left after it but the reply, for a server that loses it."""
        return self._advance(
            UNMASK, record, Agreed, secure_wire.read_unmask_request, self._unmask, secure_wire.write_unmask_reply
        )

    def _mask(self, state: Shared, request: MaskRequest) -> tuple[Masked, MaskReply]:
        after = masking.mask(state, request)
        self.ledger.leave(state.terms.exchange, request.dealers)
        return after

    def _agree(self, state: Masked, request: AgreeRequest) -> tuple[Agreed, AgreeReply]:
        after = masking.agree(state, request)
        self.ledger.sign(state.terms.exchange, request.survivors)
        return after

    def _unmask(self, state: Agreed, request: UnmaskRequest) -> tuple[Finished, UnmaskReply]:
        after = masking.unmask(state, request)
        self.ledger.open(state.terms.exchange)
        return after

    def _advance(
        self,
        kind: str,
        record: RecordDict,
        stage: type[StateT],
        read: Callable[[RecordDict], RequestT],
        trip: Callable[[StateT, RequestT], tuple[State | Finished, ReplyT]],
        write: Callable[[ReplyT], RecordDict],
    ) -> RecordDict:
        """Take one trip. The state is given up first: a check that fails leaves nothing to try again with.

        A request that was answered just before gets the same bytes again.
        """
        name = _name_of(kind, record)
        again = self._again(name)
        if again is not None:
            return again
        state, self._state, self._last = self._state, None, None
        request = read(record)
        if not isinstance(state, stage):
            found = type(state).__name__ if state is not None else "nothing"
            require(
                False,
                "AGFL-SECURE-036",
                f"trip: must follow {stage.__name__} of an exchange under way, follows {found}",
            )
        assert isinstance(state, stage)
        mine = state.terms.exchange
        require(
            request.exchange == mine,
            "AGFL-SECURE-037",
            f"exchange: must be the one under way, {mine}, got {request.exchange}",
        )
        after, reply = trip(state, request)
        self._state = None if isinstance(after, Finished) else after
        return self._remember(name, write(reply))

    def _again(self, digest: bytes) -> RecordDict | None:
        if self._last is not None and time.monotonic() - self._last.at > KEPT_S:
            self._last = None
        return self._last.reply if self._last is not None and self._last.digest == digest else None

    def _remember(self, digest: bytes, reply: RecordDict) -> RecordDict:
        self._last = _Answered(digest, reply, time.monotonic())
        return reply


@dataclass(frozen=True)
class SumRules:
    """What an owner goes by in one sum. It is no message: the client derives all of it from the plan it approved.

    asked: for the ledger. drawn: who may be in U1. groups: of which U2 and U3 must be whole ones; none where any of U1
    will do. max_rings: of an elastic model, the most that anybody is asked to fill.
    """

    asked: Asked
    drawn: frozenset[str]
    groups: tuple[tuple[str, ...], ...]
    max_rings: int = MAX_RINGS


@dataclass(frozen=True)
class _Answered:
    """The last reply: what names the request, and when that was."""

    digest: bytes
    reply: RecordDict = field(repr=False)
    at: float


def _name_of(kind: str, record: RecordDict) -> bytes:
    """Return what names a request's content, whatever message brought it: a SHA-256 over all of it.

    Bytes that Flower makes of an array name its numbers by their SHA-256.
    """
    # A name may be text that has no bytes otherwise: whoever sent it chose it.
    records = [(name.encode("utf-8", "surrogatepass"), one.deflate()) for name, one in record.items()]
    return digest("request", kind, *(part for pair in records for part in pair))
