"""A node's part in secure sums: its identity among the owners, and the state of the one exchange under way.

The secrets of an exchange live here, in the memory of the node's process, and nowhere else; they are dropped after the
last trip, and as soon as any check fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from agfl_client import masking
from agfl_client.masking_states import Advertised, Agreed, Finished, Masked, Shared, State, Terms
from agfl_client.policy import Policy
from agfl_client.replay import ReplayMemory
from agfl_models.errors import IdentityError
from agfl_protocol import secure_wire
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.errors import require
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.wire import SumRequest


class _OfExchange(Protocol):
    @property
    def exchange(self) -> ExchangeId: ...


StateT = TypeVar("StateT", Advertised, Shared, Masked, Agreed)
RequestT = TypeVar("RequestT", bound=_OfExchange)
ReplyT = TypeVar("ReplyT")


class SecureMember:
    """One owner as a member of the pinned roster.

    name, signing_key: who this is; roster: every owner, from the file that was handed over out of band; folder: where
    the answered exchanges are remembered.

    Raises:
        IdentityError: the roster does not hold this name with this key.
        ConfigError: the roster is too small, or the policy asks for what it cannot give.
    """

    def __init__(
        self, name: str, signing_key: Ed25519PrivateKey, roster: SigningRoster, policy: Policy, folder: Path
    ) -> None:
        if name not in roster:
            raise IdentityError(f"--roster: must hold this node, {name!r}, holds {', '.join(sorted(roster.keys))}")
        if roster.keys[name].public_bytes_raw() != signing_key.public_key().public_bytes_raw():
            raise IdentityError(f"--roster: must hold the signing key of this node, {name!r}; it holds another")
        self._name, self._signing_key, self._roster = name, signing_key, roster
        self._parameters = policy.parameters(len(roster))
        self._replay = ReplayMemory(folder, policy.uploads_per_round)
        self._state: State | None = None

    def check(self, request: SumRequest) -> None:
        """Check that this exchange may be answered, before any text is touched, and forget the one before it.

        Raises:
            ProtocolViolation: this exchange or a later one was answered; the exchange under way is kept.
        """
        self._replay.check(secure_wire.exchange_of(request))
        self.forget()

    def forget(self) -> None:
        """Drop the secrets of the exchange under way, if there is one."""
        self._state = None

    def advertise(self, request: SumRequest, lanes: Lanes, rings: int = 1) -> RecordDict:
        """Trip 1, with the lanes that will be masked. The exchange is remembered on disk before this returns.

        rings: how many rings of an elastic model the lanes fill, in [1, MAX_RINGS]; the other members are told.

        Raises:
            ProtocolViolation: the exchange was answered before.
        """
        exchange = secure_wire.exchange_of(request)
        self._replay.record(exchange)
        ctx0 = secure_wire.context_of(request, self._roster)
        room = request.max_cohort
        terms = Terms(self._name, self._signing_key, self._roster, self._parameters, exchange, room, ctx0, rings)
        self._state, reply = masking.advertise(terms, lanes)
        return secure_wire.write_advertise_reply(reply)

    def share(self, record: RecordDict) -> RecordDict:
        """Trip 2; as the later ones, raises WireError or ProtocolViolation and then forgets the exchange."""
        request = secure_wire.read_share_request
        return secure_wire.write_share_reply(self._advance(Advertised, record, request, masking.share))

    def mask(self, record: RecordDict) -> RecordDict:
        """Trip 3."""
        request = secure_wire.read_mask_request
        return secure_wire.write_mask_reply(self._advance(Shared, record, request, masking.mask))

    def agree(self, record: RecordDict) -> RecordDict:
        """Trip 4."""
        request = secure_wire.read_agree_request
        return secure_wire.write_agree_reply(self._advance(Masked, record, request, masking.agree))

    def unmask(self, record: RecordDict) -> RecordDict:
        """Trip 5; nothing secret is left after it."""
        request = secure_wire.read_unmask_request
        return secure_wire.write_unmask_reply(self._advance(Agreed, record, request, masking.unmask))

    def _advance(
        self,
        stage: type[StateT],
        record: RecordDict,
        read: Callable[[RecordDict], RequestT],
        trip: Callable[[StateT, RequestT], tuple[State | Finished, ReplyT]],
    ) -> ReplyT:
        """Take one trip. The state is given up first: a check that fails leaves nothing to try again with."""
        state, self._state = self._state, None
        request = read(record)
        if not isinstance(state, stage):
            found = type(state).__name__ if state is not None else "nothing"
            require(False, f"trip: must follow {stage.__name__} of an exchange under way, follows {found}")
        assert isinstance(state, stage)
        mine = state.terms.exchange
        require(request.exchange == mine, f"exchange: must be the one under way, {mine}, got {request.exchange}")
        after, reply = trip(state, request)
        self._state = None if isinstance(after, Finished) else after
        return reply
