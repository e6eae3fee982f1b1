"""The sum of a cohort's vectors of which the server sees no single one: five trips over Flower's Grid.

 1 keys    every client trains and announces fresh keys            -> U1
 2 share   each deals shares of its two secrets to the others      -> U2
 3 mask    each adds its masks; vectors are added as they come     -> U3
 4 agree   the survivors sign U3
 5 unmask  with a quorum of signatures, they give what opens the sum, and nothing else

Specification: agfl_protocol/secagg/SPEC.md. Source: Bonawitz et al. 2017, ePrint 2017/281.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from agfl_models.errors import WireError
from agfl_models.machine import usable_cpus
from agfl_protocol.messages import secure_wire, wire
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import ExchangeId, dealers_context, survivors_context
from agfl_protocol.secagg.errors import ProtocolViolation, accused
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import Mask, apply_masks
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.messages import KeyRecord, SealedShares, UnmaskReply
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum, Groups, LaneCodec, reasons
from agfl_server.aggregation.unmasking import Dealt, Recovery, check_keys, find_shared_keys, find_too_strict
from agfl_server.rounds.journal import NoRecords, Records
from agfl_server.rounds.observer import Observer
from agfl_server.transport.clock import clock_of
from agfl_server.transport.limits import SMALL_REPLY_BYTES, vector_reply_bytes
from agfl_server.transport.messaging import ask_nodes, error_of

_KEYS, _DEALT, _SUM, _SIGNATURES, _OPENINGS = "1-keys", "2-dealt", "3-sum", "4-signatures", "5-openings"


@dataclass(frozen=True)
class SecureSum:
    """Bonawitz et al. 2017 with signed keys, an agreed U3 and masks bound to what was broadcast.

    trip_timeout_s: patience in each trip after the first, which includes the training. accusers: dealer -> all who said
    that what it sealed for them is no good, in any exchange.
    """

    observer: Observer
    roster: SigningRoster
    parameters: Parameters
    trip_timeout_s: float = 120.0
    num_threads: int = field(default_factory=usable_cpus)
    accusers: dict[str, set[str]] = field(default_factory=dict)

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
        groups: Groups = (),
        records: Records | None = None,
    ) -> CohortSum:
        """Return the sum over U3; names in `refused` that are survivors too were lost after their vector was added.

        Each trip's outcome is on disk before the next trip asks, and the openings before the sum is opened. So a crash
        costs no exchange, and nobody is asked for anything else than before.

        Raises:
            AttemptFailed: too few clients or shares are left, or a client lied where it cannot be left out.
        """
        records = records or NoRecords()
        exchange = secure_wire.exchange_of(request)
        talk = Talk(grid, cohort, self.observer, exchange)
        ctx0 = secure_wire.context_of(request, self.roster)
        try:
            members = self._members(talk, request, ctx0, timeout_s, records)
            dealt = self._dealt(talk, members, groups, records)
        except AttemptFailed as error:
            error.silent, error.refusing = frozenset(talk.silent), talk.own_refusals
            raise
        try:
            lanes, survivors = self._vectors(talk, members, dealt, codec.num_lanes, groups, records)
            signatures = self._signatures(talk, members, dealt, survivors, records)
            replies = self._openings(talk, members, dealt, signatures, records)
            recovery = Recovery(ctx0, members, self.parameters, dealt, survivors, replies)
            apply_masks(lanes, self._open(talk, recovery), self.num_threads)
            check_count(lanes, survivors, talk)
        except AttemptFailed as error:
            error.is_spent = True
            error.silent, error.refusing = frozenset(talk.silent), talk.own_refusals
            raise
        silent, refusing = frozenset(talk.silent), talk.own_refusals
        sent = talk.bytes_up, talk.bytes_down
        return CohortSum(exchange.exchange, lanes, survivors, talk.refused, *sent, silent, refusing)

    def _members(
        self, talk: Talk, request: wire.SumRequest, ctx0: bytes, timeout_s: float, records: Records
    ) -> Members:
        """Return U1: from the records, or by trip 1."""
        kept = records.read(_KEYS)
        if kept is not None:
            return Members.of(ctx0, [secure_wire.unpack_record(name, block) for name, block in kept.items()])
        members = self._collect_keys(talk, request, ctx0, timeout_s)
        records.write(_KEYS, {name: secure_wire.pack_record(record) for name, record in members.records.items()})
        return members

    def _dealt(self, talk: Talk, members: Members, groups: Groups, records: Records) -> Dealt:
        """Return what U2 dealt: from the records, or by trip 2."""
        kept = records.read(_DEALT)
        if kept is None:
            dealt = self._collect_shares(talk, members, groups)
            records.write(_DEALT, {n: secure_wire.pack_dealt(tuple(shares.values())) for n, shares in dealt.items()})
            return dealt
        return {
            name: dict(zip(members.others(name), secure_wire.unpack_dealt(block), strict=True))
            for name, block in sorted(kept.items())
        }

    def _vectors(
        self, talk: Talk, members: Members, dealt: Dealt, num_lanes: int, groups: Groups, records: Records
    ) -> tuple[Lanes, tuple[str, ...]]:
        """Return the masked sum and U3: from the records, or by trip 3."""
        kept = records.read(_SUM)
        if kept is not None:
            return np.frombuffer(kept["lanes"], np.uint64).copy(), tuple(kept["survivors"].decode().split("\n"))
        lanes, survivors = self._collect_vectors(talk, members, dealt, num_lanes, groups)
        records.write(_SUM, {"lanes": lanes.data.cast("B"), "survivors": "\n".join(survivors).encode()})
        return lanes, survivors

    def _signatures(
        self, talk: Talk, members: Members, dealt: Dealt, survivors: Sequence[str], records: Records
    ) -> dict[str, bytes]:
        """Return the signatures over U3: from the records, or by trip 4."""
        kept = records.read(_SIGNATURES)
        if kept is None:
            kept = self._collect_signatures(talk, members, dealt, survivors)
            records.write(_SIGNATURES, kept)
        return dict(sorted(kept.items()))

    def _openings(
        self, talk: Talk, members: Members, dealt: Dealt, signatures: Mapping[str, bytes], records: Records
    ) -> dict[str, UnmaskReply]:
        """Return what opens the sum: from the records, or by trip 5."""
        kept = records.read(_OPENINGS)
        if kept is None:
            replies = self._collect_openings(talk, members, dealt, signatures)
            records.write(_OPENINGS, {name: secure_wire.pack_opening(reply) for name, reply in replies.items()})
            return replies
        return {name: secure_wire.unpack_opening(talk.exchange, block) for name, block in sorted(kept.items())}

    def _collect_keys(self, talk: Talk, request: wire.SumRequest, ctx0: bytes, timeout_s: float) -> Members:
        """Trip 1."""
        records: dict[str, KeyRecord] = {}
        cohort = sorted(talk.cohort)
        enough = self.parameters.least_survivors(len(cohort))
        for name, content in talk.ask_all(request.kind, request.to_record(), cohort, timeout_s, enough):
            with talk.refusing(name):
                record = secure_wire.read_advertise_reply(content, talk.exchange).record
                check_keys(name, record, ctx0, self.roster, self.parameters)
                records[name] = record
                self.observer.client_finished(name)
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

    def _collect_shares(self, talk: Talk, members: Members, groups: Groups) -> Dealt:
        """Trip 2: return what each of U2, sorted, dealt to each other member; U2 is whole groups, if there are any."""
        request = messages.ShareRequest(talk.exchange, tuple(members.records.values()))
        content = secure_wire.write_share_request(request)
        dealt: dict[str, dict[str, SealedShares]] = {}
        for name, reply in talk.ask_all(
            secure_wire.SHARE, content, members.names, self.trip_timeout_s, self.least(members)
        ):
            with talk.refusing(name):
                others = members.others(name)
                shares = secure_wire.read_share_reply(reply, talk.exchange, len(others)).dealt
                dealt[name] = dict(zip(others, shares, strict=True))
        for name in outside_whole_groups(dealt, groups):
            talk.refuse(name, "group: must be there whole in a sum of this kind; somebody of it is missing")
            del dealt[name]
        talk.require(len(dealt), self.least(members), "U2, clients that dealt shares")
        return dict(sorted(dealt.items()))

    def _collect_vectors(
        self, talk: Talk, members: Members, dealt: Dealt, num_lanes: int, groups: Groups
    ) -> tuple[Lanes, tuple[str, ...]]:
        """Trip 3: return the sum of the masked vectors and U3. Each is added as it comes and dropped, none later.

        A partial sum is kept of each group, since one that lost somebody stays out whole.
        """
        dealers = talk.dealers = tuple(dealt)
        contents = {
            name: secure_wire.write_mask_request(
                messages.MaskRequest(talk.exchange, dealers, tuple(dealt[d][name] for d in dealers if d != name))
            )
            for name in dealers
        }
        group_of = {name: number for number, group in enumerate(groups) for name in group}
        sums: dict[int, Lanes] = {}
        survivors: set[str] = set()
        size, least = vector_reply_bytes(num_lanes), self.least(members)
        for name, reply in talk.ask(secure_wire.MASK, contents, self.trip_timeout_s, least, size):
            with talk.refusing(name):
                lanes = secure_wire.read_mask_reply(reply, talk.exchange, num_lanes).lanes
                group = group_of.get(name, 0)
                if group in sums:
                    sums[group] += lanes
                else:
                    sums[group] = lanes.copy()
                survivors.add(name)
                self.observer.replied(name)
                del lanes
            del reply
        self._check_dealers(talk)  # S3.2
        for name in outside_whole_groups(survivors, groups):
            talk.refuse(name, "group: must be there whole in a sum of this kind; somebody of it is missing")
            survivors.discard(name)
            sums.pop(group_of[name], None)
        talk.require(len(survivors), least, "U3, clients that sent a vector")
        total, *others = sums.values()
        for lanes in others:
            total += lanes
        return total, tuple(sorted(survivors))

    def _collect_signatures(
        self, talk: Talk, members: Members, dealt: Dealt, survivors: Sequence[str]
    ) -> dict[str, bytes]:
        """Trip 4: return the signatures over U3, sorted by name."""
        ctx3 = survivors_context(dealers_context(members.ctx1, tuple(dealt)), survivors)
        content = secure_wire.write_agree_request(messages.AgreeRequest(talk.exchange, tuple(survivors)))
        signatures: dict[str, bytes] = {}
        quorum = self.parameters.quorum(len(members.records))
        for name, reply in talk.ask_all(secure_wire.AGREE, content, survivors, self.trip_timeout_s, quorum):
            with talk.refusing(name):
                signature = secure_wire.read_agree_reply(reply, talk.exchange).signature
                self.roster.verify(name, signature, SIGN_AGREEMENT, ctx3, name)  # S4.1
                signatures[name] = signature
        talk.require(len(signatures), quorum, "signatures over U3")
        return dict(sorted(signatures.items()))

    def _collect_openings(
        self, talk: Talk, members: Members, dealt: Dealt, signatures: Mapping[str, bytes]
    ) -> dict[str, UnmaskReply]:
        """Trip 5: show a quorum to those that signed; return their replies, sorted by name."""
        quorum = list(signatures)[: self.parameters.quorum(len(members.records))]
        request = messages.UnmaskRequest(talk.exchange, tuple(quorum), tuple(signatures[name] for name in quorum))
        content = secure_wire.write_unmask_request(request)
        replies: dict[str, UnmaskReply] = {}
        signers, threshold = list(signatures), self.parameters.threshold
        for name, reply in talk.ask_all(secure_wire.UNMASK, content, signers, self.trip_timeout_s, threshold + 1):
            with talk.refusing(name):
                replies[name] = secure_wire.read_unmask_reply(reply, talk.exchange, len(dealt) - 1)
        talk.require(len(replies), threshold, "openings, clients that gave shares")  # S5.0
        return dict(sorted(replies.items()))

    def _open(self, talk: Talk, recovery: Recovery) -> list[Mask]:
        """Return what opens the sum; name those who did not give what they owed."""
        try:
            return recovery.masks()
        except AttemptFailed as error:
            refused = {**talk.refused, **recovery.blamed}
            raise AttemptFailed.of(error, error.sentence, refused, error.guilty) from None
        finally:
            for name, reason in recovery.blamed.items():
                talk.refuse(name, reason)

    def _check_dealers(self, talk: Talk) -> None:
        """Raise AttemptFailed where more than c holders accuse a dealer, in all exchanges together: one is honest."""
        for holder, dealer in talk.accused.items():
            self.accusers.setdefault(dealer, set()).add(holder)
        counts = {name: len(self.accusers.get(name, ())) for name in sorted(set(talk.accused.values()))}
        guilty = {name: count for name, count in counts.items() if count > self.parameters.max_colluders}
        for dealer, count in guilty.items():
            del self.accusers[dealer]
            talk.refuse(dealer, f"shares: must be good for every holder, {count} say that they are not")
        if guilty:
            blamed = {name: talk.refused[name] for name in talk.refused if name in guilty or name in talk.silent}
            line = reasons({repr(name): blamed[name] for name in guilty}).removeprefix("; ")
            raise AttemptFailed("AGFL-ROUND-015", line, blamed, frozenset(guilty))

    def least(self, members: Members) -> int:
        """Return how many of U1 must be left in U2 and U3."""
        return members.bind(self.parameters).least_survivors(len(members.records))


def check_count(lanes: Lanes, survivors: Sequence[str], talk: Talk) -> None:
    """Check the canary (S5.6): every client counts 1; raises AttemptFailed."""
    if lanes[0] != len(survivors):
        line = f"count: must be {len(survivors)} after unmasking, got {lanes[0]}"
        raise AttemptFailed("AGFL-ROUND-014", line, talk.refused, bad=survivors)


def outside_whole_groups(names: Collection[str], groups: Groups) -> list[str]:
    """Return those of `names` whose group is not among them whole; nobody where there are no groups."""
    whole = {name for group in groups if all(name in names for name in group) for name in group}
    return [name for name in names if name not in whole] if groups else []


@dataclass
class Talk:
    """The trips of one exchange: who was refused and why, and how many bytes went each way.

    dealers: U2, once it is known; accused: holder -> the dealer whose shares it could not use. silent: who did not
    answer in time; own_refusals: NAME -> reason of who answered that it takes no part.
    """

    grid: Grid
    cohort: Mapping[str, int]
    observer: Observer
    exchange: ExchangeId
    refused: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    own_refusals: dict[str, str] = field(default_factory=dict)
    dealers: tuple[str, ...] = ()
    accused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    def ask_all(
        self, kind: str, content: RecordDict, names: Sequence[str], timeout_s: float, enough: int
    ) -> Iterator[tuple[str, RecordDict]]:
        """Send one content to all of `names`, as `ask` does."""
        return self.ask(kind, dict.fromkeys(names, content), timeout_s, enough)

    def ask(
        self,
        kind: str,
        contents: Mapping[str, RecordDict],
        timeout_s: float,
        enough: int,
        max_reply_bytes: int = SMALL_REPLY_BYTES,
    ) -> Iterator[tuple[str, RecordDict]]:
        """Send each name its content and yield (name, reply) as replies come; who fails or is silent is refused.

        enough: see `ask_nodes`.
        """
        for name in (name for name in contents if name not in self.cohort):
            self.refuse(name, "did not come back after this server was started anew")
        names = {self.cohort[name]: name for name in contents if name in self.cohort}
        requests = [Message(contents[name], node, kind) for node, name in names.items()]
        self.bytes_down += sum(map(wire.content_bytes, requests))
        clock = clock_of(self.grid)
        started = clock.now()
        replies = ask_nodes(self.grid, requests, timeout_s, max_reply_bytes, enough)
        requests = contents = ()  # type: ignore[assignment]  # a model, which the grid has
        for node, reply in replies:
            name = names.pop(node)
            if reply.has_error():
                self._refuse_error(name, *error_of(reply))
            else:
                self.bytes_up += wire.content_bytes(reply)
                yield name, reply.content
            del reply  # a vector, before the next one
        for name in names.values():
            self.silent.add(name)
            self.refuse(name, f"no reply to {kind} within {min(timeout_s, clock.now() - started):.3g} s")

    def _refuse_error(self, name: str, reason: str, is_own: bool) -> None:
        """Leave a holder out that refused; what it says of a dealer is its word alone."""
        dealer = accused(reason, self.dealers)
        if dealer is not None and dealer != name:
            self.accused[name] = dealer
            reason = f"says that it cannot use what {dealer!r} sealed for it: one of the two is wrong"
        elif is_own:
            self.own_refusals[name] = reason
        self.refuse(name, reason)

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

    def require(self, got: int, minimum: int, what: str) -> None:
        """Raise AttemptFailed, with the reasons of those left out, where fewer than `least` are left."""
        if got < minimum:
            line = f"{what}: must be at least {minimum}, got {got}{reasons(self.refused)}"
            raise AttemptFailed("AGFL-ROUND-016", line, self.refused)
