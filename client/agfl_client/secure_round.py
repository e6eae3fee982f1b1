"""What a node keeps of the secure sum between messages: at most one open attempt, in memory only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agfl_client import masking
from agfl_client.masking_states import Advertised, Agreed, Finished, Masked, Shared, State, Terms
from agfl_client.replay import ReplayMemory
from agfl_models.errors import IdentityError
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import AttemptId
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.masks import Lanes
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.secure_wire import attempt_of, context_of
from agfl_protocol.wire import RoundRequest


class _Request(Protocol):
    @property
    def attempt(self) -> AttemptId: ...


StateT = TypeVar("StateT", Advertised, Shared, Masked, Agreed)
RequestT = TypeVar("RequestT", bound=_Request)
ReplyT = TypeVar("ReplyT")


class SecureRound:
    """One owner's part in secure sums.

    An attempt that breaks a check is over: its secrets are dropped and nothing more of it is answered. A message of
    another attempt than the open one is refused and changes nothing.

    Raises:
        IdentityError: the roster does not hold this owner's NAME with this key.
    """

    def __init__(
        self,
        name: str,
        signing_key: Ed25519PrivateKey,
        roster: SigningRoster,
        parameters: Parameters,
        replay: ReplayMemory,
    ) -> None:
        registered = roster.keys.get(name)
        # C0.1 of SPEC.md
        if registered is None or registered.public_bytes_raw() != signing_key.public_key().public_bytes_raw():
            raise IdentityError(f"roster: must hold the signing key of {name!r}; it holds another or none")
        self._name = name
        self._signing_key = signing_key
        self._roster = roster
        self._parameters = parameters
        self._replay = replay
        self._state: State | None = None

    def check(self, request: RoundRequest) -> None:
        """Check that this attempt may be answered, before any text is touched; then the one that is open is over.

        Raises:
            ProtocolViolation: names the field; what is open goes on.
        """
        self._replay.check(attempt_of(request))
        self.forget()

    def begin(self, request: RoundRequest, lanes: Lanes) -> messages.AdvertiseReply:
        """Trip 1, once the lanes are there. They are given up by the caller and will be masked in place.

        Raises:
            ProtocolViolation: as `check`.
            ConfigError: the attempt cannot be remembered on disk.
        """
        assert lanes.dtype == np.uint64
        assert lanes.flags.writeable
        attempt = attempt_of(request)
        self._replay.record(attempt)
        terms = Terms(
            name=self._name,
            signing_key=self._signing_key,
            roster=self._roster,
            parameters=self._parameters,
            attempt=attempt,
            max_cohort=request.plan.max_cohort,
            ctx0=context_of(request, self._roster),
        )
        self._state, reply = masking.advertise(terms, lanes)
        return reply

    def share(self, request: messages.ShareRequest) -> messages.ShareReply:
        """Trip 2; raises ProtocolViolation, as the trips below."""
        return self._advance(Advertised, masking.share, request)

    def mask(self, request: messages.MaskRequest) -> messages.MaskReply:
        """Trip 3."""
        return self._advance(Shared, masking.mask, request)

    def agree(self, request: messages.AgreeRequest) -> messages.AgreeReply:
        """Trip 4."""
        return self._advance(Masked, masking.agree, request)

    def unmask(self, request: messages.UnmaskRequest) -> messages.UnmaskReply:
        """Trip 5; nothing secret is left."""
        return self._advance(Agreed, masking.unmask, request)

    def forget(self) -> None:
        """Drop the open attempt with its secrets."""
        self._state = None

    def _advance(
        self,
        stage: type[StateT],
        trip: Callable[[StateT, RequestT], tuple[State | Finished, ReplyT]],
        request: RequestT,
    ) -> ReplyT:
        state = self._state
        if state is None or state.terms.attempt != request.attempt:
            raise ProtocolViolation(f"attempt: must be the one that is open here, got {request.attempt}")
        self._state = None  # given up, whatever comes of it
        at, asked = type(state).__name__.lower(), stage.__name__.lower()
        if not isinstance(state, stage):
            raise ProtocolViolation(f"trip: must follow stage {asked!r} of {request.attempt}, this client is at {at!r}")
        after, reply = trip(state, request)
        self._state = None if isinstance(after, Finished) else after
        return reply
