"""The sum of a cohort's vectors of which the server sees no single one: five trips over Flower's Grid.

 1 keys    every client trains and announces fresh keys            -> U1
 2 share   each deals shares of its two secrets to the others      -> U2
 3 mask    each adds its masks; vectors are added as they come     -> U3
 4 agree   the survivors sign U3
 5 unmask  with a quorum of signatures, they give what opens the sum, and nothing else

Specification: agfl_protocol/secagg/SPEC.md. Source: Bonawitz et al. 2017, ePrint 2017/281.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from agfl_models.errors import WireError
from agfl_protocol import secure_wire, wire
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import AttemptId, dealers_context, survivors_context
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import Mask, apply_masks
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.messages import KeyRecord, SealedShares, UnmaskReply
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregator import AttemptFailed, CohortSum, LaneCodec, reasons
from agfl_server.exchange import exchange
from agfl_server.limits import SMALL_REPLY_BYTES, vector_reply_bytes
from agfl_server.observer import Observer
from agfl_server.unmasking import Dealt, Recovery, check_keys, find_shared_keys, find_too_strict


@dataclass(frozen=True)
class SecureSum:
    """Bonawitz et al. 2017 with signed keys, an agreed U3 and masks bound to what was broadcast.

    trip_timeout_s: patience in each trip after the first, which includes the training.
    """

    observer: Observer
    roster: SigningRoster
    parameters: Parameters
    trip_timeout_s: float = 120.0
    num_threads: int = os.cpu_count() or 1

    def requiring(self, min_cohort: int) -> SecureSum:
        """Return the same, in which U1, U2 and U3 are at least `min_cohort`."""
        return replace(self, parameters=replace(self.parameters, min_cohort=min_cohort))

    def sum(
        self,
        grid: Grid,
        cohort: Mapping[str, int],
        request: wire.SumRequest,
        codec: LaneCodec,
        timeout_s: float,
    ) -> CohortSum:
        """Return the sum over U3; names in `refused` that are survivors too were lost after their vector was added.

        Raises:
            AttemptFailed: too few clients or shares are left, or a client lied where it cannot be left out.
        """
        attempt = secure_wire.attempt_of(request)
        talk = _Talk(grid, cohort, self.observer, attempt)
        ctx0 = secure_wire.context_of(request, self.roster)
        members = self._collect_keys(talk, request, ctx0, timeout_s)
        dealt = self._collect_shares(talk, members)
        lanes, survivors = self._collect_vectors(talk, members, dealt, codec.num_lanes)
        signatures = self._collect_signatures(talk, members, dealt, survivors)
        replies = self._collect_openings(talk, members, dealt, signatures)
        recovery = Recovery(ctx0, members, self.parameters, dealt, survivors, replies)
        apply_masks(lanes, self._open(talk, recovery), self.num_threads)
        if lanes[0] != len(survivors):  # S5.6, the canary: every client counts 1
            raise AttemptFailed(f"count: must be {len(survivors)} after unmasking, got {lanes[0]}", talk.refused)
        return CohortSum(attempt.attempt, lanes, survivors, talk.refused, talk.bytes_up, talk.bytes_down)

    def _collect_keys(self, talk: _Talk, request: wire.SumRequest, ctx0: bytes, timeout_s: float) -> Members:
        """Trip 1."""
        records: dict[str, KeyRecord] = {}
        for name, content in talk.ask_all(request.kind, request.to_record(), sorted(talk.cohort), timeout_s):
            with talk.refusing(name):
                record = secure_wire.read_advertise_reply(content, talk.attempt).record
                check_keys(name, record, ctx0, self.roster, self.parameters)
                records[name] = record
        for name in find_shared_keys(records):
            talk.refuse(name, "keys: must be this client's alone; another announced one of them")
            del records[name]
        least = self.parameters.min_cohort
        talk.require(len(records), least, "U1, clients that announced keys")
        strict = {name: records.pop(name).min_cohort for name in find_too_strict(records, least)}
        for name, asked in strict.items():
            talk.refuse(name, f"min_cohort: must be at most {len(records) + 1}, the clients left with it, got {asked}")
        talk.require(len(records), least, "U1, clients whose min_cohort can be met")
        return Members.of(ctx0, records.values())

    def _collect_shares(self, talk: _Talk, members: Members) -> Dealt:
        """Trip 2: return what each of U2, sorted, dealt to each other member."""
        request = messages.ShareRequest(talk.attempt, tuple(members.records.values()))
        content = secure_wire.write_share_request(request)
        dealt: dict[str, dict[str, SealedShares]] = {}
        for name, reply in talk.ask_all(secure_wire.SHARE, content, members.names, self.trip_timeout_s):
            with talk.refusing(name):
                others = members.others(name)
                shares = secure_wire.read_share_reply(reply, talk.attempt, len(others)).dealt
                dealt[name] = dict(zip(others, shares, strict=True))
        talk.require(len(dealt), self._least(members), "U2, clients that dealt shares")
        return dict(sorted(dealt.items()))

    def _collect_vectors(
        self, talk: _Talk, members: Members, dealt: Dealt, num_lanes: int
    ) -> tuple[Lanes, tuple[str, ...]]:
        """Trip 3: return the sum of the masked vectors and U3. Each is added as it comes and dropped, none later."""
        dealers = tuple(dealt)
        contents = {
            name: secure_wire.write_mask_request(
                messages.MaskRequest(talk.attempt, dealers, tuple(dealt[d][name] for d in dealers if d != name))
            )
            for name in dealers
        }
        total = np.zeros(num_lanes, np.uint64)
        survivors: list[str] = []
        for name, reply in talk.ask(secure_wire.MASK, contents, self.trip_timeout_s, vector_reply_bytes(num_lanes)):
            with talk.refusing(name):
                total += secure_wire.read_mask_reply(reply, talk.attempt, num_lanes).lanes
                survivors.append(name)
                self.observer.replied(name)
        talk.require(len(survivors), self._least(members), "U3, clients that sent a vector")
        return total, tuple(sorted(survivors))

    def _collect_signatures(
        self, talk: _Talk, members: Members, dealt: Dealt, survivors: Sequence[str]
    ) -> dict[str, bytes]:
        """Trip 4: return the signatures over U3, sorted by name."""
        ctx3 = survivors_context(dealers_context(members.ctx1, tuple(dealt)), survivors)
        content = secure_wire.write_agree_request(messages.AgreeRequest(talk.attempt, tuple(survivors)))
        signatures: dict[str, bytes] = {}
        for name, reply in talk.ask_all(secure_wire.AGREE, content, survivors, self.trip_timeout_s):
            with talk.refusing(name):
                signature = secure_wire.read_agree_reply(reply, talk.attempt).signature
                self.roster.verify(name, signature, SIGN_AGREEMENT, ctx3, name)  # S4.1
                signatures[name] = signature
        talk.require(len(signatures), self.parameters.quorum(len(members.records)), "signatures over U3")
        return dict(sorted(signatures.items()))

    def _collect_openings(
        self, talk: _Talk, members: Members, dealt: Dealt, signatures: Mapping[str, bytes]
    ) -> dict[str, UnmaskReply]:
        """Trip 5: show a quorum to those that signed; return their replies, sorted by name."""
        quorum = list(signatures)[: self.parameters.quorum(len(members.records))]
        request = messages.UnmaskRequest(talk.attempt, tuple(quorum), tuple(signatures[name] for name in quorum))
        content = secure_wire.write_unmask_request(request)
        replies: dict[str, UnmaskReply] = {}
        for name, reply in talk.ask_all(secure_wire.UNMASK, content, list(signatures), self.trip_timeout_s):
            with talk.refusing(name):
                replies[name] = secure_wire.read_unmask_reply(reply, talk.attempt, len(dealt) - 1)
        talk.require(len(replies), self.parameters.threshold, "openings, clients that gave shares")  # S5.0
        return dict(sorted(replies.items()))

    def _open(self, talk: _Talk, recovery: Recovery) -> list[Mask]:
        """Return what opens the sum; name those who did not give what they owed."""
        try:
            return recovery.masks()
        except AttemptFailed as error:
            raise AttemptFailed(str(error), {**talk.refused, **recovery.blamed}, error.guilty) from None
        finally:
            for name, reason in recovery.blamed.items():
                talk.refuse(name, reason)

    def _least(self, members: Members) -> int:
        return members.bind(self.parameters).least_survivors(len(members.records))


@dataclass
class _Talk:
    """The exchanges of one attempt: who was refused and why, and how many bytes went each way."""

    grid: Grid
    cohort: Mapping[str, int]
    observer: Observer
    attempt: AttemptId
    refused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    def ask_all(
        self, kind: str, content: RecordDict, names: Sequence[str], timeout_s: float
    ) -> Iterator[tuple[str, RecordDict]]:
        """Send one content to all of `names`, as `ask` does."""
        return self.ask(kind, dict.fromkeys(names, content), timeout_s)

    def ask(
        self,
        kind: str,
        contents: Mapping[str, RecordDict],
        timeout_s: float,
        max_reply_bytes: int = SMALL_REPLY_BYTES,
    ) -> Iterator[tuple[str, RecordDict]]:
        """Send each name its content and yield (name, reply) as replies come; who fails or is silent is refused."""
        names = {self.cohort[name]: name for name in contents}
        requests = [Message(content, self.cohort[name], kind) for name, content in contents.items()]
        self.bytes_down += sum(map(wire.content_bytes, requests))
        for node, reply in exchange(self.grid, requests, timeout_s, max_reply_bytes):
            name = names.pop(node)
            if reply.has_error():
                self.refuse(name, reply.error.reason or "no reason given")
            else:
                self.bytes_up += wire.content_bytes(reply)
                yield name, reply.content
        for name in names.values():
            self.refuse(name, f"no reply to {kind} within {timeout_s:g} s")

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Refuse `name` by whatever is wrong with its reply."""
        try:
            yield
        except (WireError, ProtocolViolation) as error:
            self.refuse(name, str(error))

    def refuse(self, name: str, reason: str) -> None:
        """Leave `name` out, or go on without it."""
        self.refused[name] = reason
        self.observer.refused(name, reason)

    def require(self, got: int, least: int, what: str) -> None:
        """Raise AttemptFailed, with the reasons of those left out, where fewer than `least` are left."""
        if got < least:
            line = f"{what}: must be at least {least}, got {got}{reasons(self.refused)}"
            raise AttemptFailed(line, self.refused)
