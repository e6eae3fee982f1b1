"""Owners with real keys and the real client half of the secure sum, and a Grid on which anything can happen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from agfl_client.ledger.ledger_state import Asked
from agfl_client.policy import Policy
from agfl_client.secure.masking_states import State
from agfl_client.secure.secure_member import SecureMember, SumRules
from agfl_models.errors import AgflError
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT, CountRequest
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.messages import KeyRecord, SealedShares
from agfl_protocol.secagg.parameters import MIN_HONEST, Parameters
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Vector
from agfl_server.aggregation.aggregator import CohortSum
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.rounds.observer import Observer

TRIPS = (wire.TRAIN, sw.SHARE, sw.MASK, sw.AGREE, sw.UNMASK)
PLAN_HASH = "a" * 64
MODEL = np.array([0.5, -1.25, 3e-8], np.float32)
READERS: dict[str, Callable[[RecordDict], wire.SumRequest]] = {
    wire.TRAIN: wire.RoundRequest.from_record,
    wire.EVALUATE: wire.RoundRequest.from_record,
    COUNT: CountRequest.from_record,
}
Hook = Callable[[str, str, RecordDict], RecordDict | None]


def exchange_id(exchange: int = 0, round_number: int = 1, run_id: str = "run") -> ExchangeId:
    """The exchange that `round_request` names."""
    return ExchangeId(run_id, round_number, exchange)


def round_request(
    run_id: str = "run", round_number: int = 1, exchange: int = 0, model: Vector | None = None, max_cohort: int = 1000
) -> wire.RoundRequest:
    """The request of trip 1; the secure sum never looks into model or configuration."""
    plan = QuantizationPlan(2, max_cohort)
    vector = MODEL if model is None else model
    return wire.RoundRequest(
        run_id,
        round_number,
        exchange,
        PLAN_HASH,
        "{}",
        evaluate=False,
        train=True,
        model=vector,
        plan=plan,
    )


def count_request(
    run_id: str = "run", round_number: int = 1, exchange: int = 0, max_cohort: int = 1000
) -> CountRequest:
    """As `round_request`, but to count pairs."""
    merges = ((97, 98), (259, 99))
    return CountRequest(run_id, round_number, exchange, PLAN_HASH, "{}", merges, 1, max_cohort)


def rules_of(request: wire.SumRequest, drawn: Iterable[str], groups: Iterable[tuple[str, ...]] = ()) -> SumRules:
    """What a plan that draws `drawn` says of a request; with groups the sum is an exact one."""
    names, cut = frozenset(drawn), tuple(groups)
    asked = Asked(
        kind=Kind.EXACT if cut else Kind.SAMPLED,
        train=request.kind == wire.TRAIN,
        evaluate=request.kind == wire.EVALUATE,
        count=request.kind == COUNT,
        cohort=len(names),
        stage=f"{request.kind} {request.client_plan_hash[:16]}",
    )
    return SumRules(asked, names, cut)


class Half:
    """An owner's real `SecureMember`, spoken to in messages: each goes through the records of the wire and back.

    drawn, groups: of the owner's plan; by default all in its roster are drawn, and any of them will do.
    """

    def __init__(
        self, member: SecureMember, drawn: Iterable[str] | None = None, groups: Iterable[tuple[str, ...]] = ()
    ) -> None:
        self.member = member
        self.drawn = member.names if drawn is None else frozenset(drawn)
        self.groups = tuple(groups)

    @property
    def state(self) -> State | None:
        """What the member keeps."""
        return self.member._state

    def begin(self, request: wire.SumRequest, lanes: Lanes, rings: int = 1) -> messages.AdvertiseReply:
        """Trip 1."""
        return sw.read_advertise_reply(self.announce(request, lanes, rings), sw.exchange_of(request))

    def announce(self, request: wire.SumRequest, lanes: Lanes, rings: int = 1) -> RecordDict:
        """Trip 1 as a node goes through it, in messages."""
        again = self.member.answered(request)
        if again is not None:
            return again
        rules = rules_of(request, self.drawn, self.groups)
        self.member.check(request, rules)
        return self.member.advertise(request, rules, lanes, rings)

    def share(self, request: messages.ShareRequest) -> messages.ShareReply:
        """Trip 2."""
        reply = self.member.share(sw.write_share_request(request))
        return sw.read_share_reply(reply, request.exchange, len(request.records) - 1)

    def mask(self, request: messages.MaskRequest) -> messages.MaskReply:
        """Trip 3."""
        reply = self.member.mask(sw.write_mask_request(request))
        size = reply.array_records["arrays"]["lanes"].shape[0]
        return sw.read_mask_reply(reply, request.exchange, size)

    def agree(self, request: messages.AgreeRequest) -> messages.AgreeReply:
        """Trip 4."""
        return sw.read_agree_reply(self.member.agree(sw.write_agree_request(request)), request.exchange)

    def unmask(self, request: messages.UnmaskRequest) -> messages.UnmaskReply:
        """Trip 5."""
        reply = self.member.unmask(sw.write_unmask_request(request))
        shares = reply.config_records["config"]["shares"]
        assert isinstance(shares, bytes)
        return sw.read_unmask_reply(reply, request.exchange, len(shares) // 32)


@dataclass
class Owner:
    """One client: its real half of the protocol, its vector, the lines that it logged, and how many rings it fills."""

    name: str
    key: Ed25519PrivateKey
    half: Half
    vector: Lanes
    log: list[str] = field(default_factory=list)
    rings: int = 1

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """Do what a node does with a message."""
        member = self.half.member
        if kind in READERS:
            return self.half.announce(READERS[kind](content), self.vector.copy(), self.rings)
        trips = {sw.SHARE: member.share, sw.MASK: member.mask, sw.AGREE: member.agree, sw.UNMASK: member.unmask}
        return trips[kind](content)


@dataclass
class World:
    """A roster of owners in `folder`, each with a random vector whose first lane counts 1."""

    owners: dict[str, Owner]
    roster: SigningRoster
    parameters: Parameters

    @staticmethod
    def of(
        size: int,
        folder: Path,
        num_lanes: int = 7,
        max_colluders: int | None = None,
        min_cohort: int | None = None,
        uploads_per_round: int = 3,
        announcements_per_round: int = 16,
        groups: Iterable[tuple[str, ...]] = (),
    ) -> World:
        """Make `size` owners `owner-000`, ..., all with the same policy and plan.

        min_cohort: by default c + 2, the least that an owner may ask for, where an attacker has the best of it.
        """
        signing = {f"owner-{i:03}": Ed25519PrivateKey.generate() for i in range(size)}
        roster = SigningRoster({name: key.public_key() for name, key in signing.items()})
        cut = tuple(groups)
        colluders = Parameters.of(size, max_colluders).max_colluders
        policy = Policy(
            max_colluders=max_colluders,
            min_cohort=colluders + MIN_HONEST if min_cohort is None else min_cohort,
            uploads_per_round=uploads_per_round,
            announcements_per_round=announcements_per_round,
        )
        rng = np.random.default_rng(size)
        owners = {}
        for name, key in signing.items():
            (folder / name).mkdir(exist_ok=True)
            member = SecureMember(name, key, roster, policy, folder / name)
            vector = rng.integers(0, 2**64, num_lanes, np.uint64)
            vector[0] = 1
            owners[name] = Owner(name, key, Half(member, groups=cut), vector)
        return World(owners, roster, policy.parameters(size))

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.owners)

    def plain_sum(self, names: Iterable[str]) -> Lanes:
        """The sum modulo 2^64 that nobody masked."""
        total: Lanes = np.sum([self.owners[name].vector for name in names], axis=0, dtype=np.uint64)
        return total

    def secure_sum(
        self,
        request: wire.SumRequest | None = None,
        on_request: Hook | None = None,
        on_reply: Hook | None = None,
        cohort: Iterable[str] | None = None,
        timeout_s: float = 30.0,
        observer: Observer | None = None,
        groups: tuple[tuple[str, ...], ...] = (),
    ) -> CohortSum:
        """One exchange with the real server half. The hooks see (trip, name, content); None loses the message."""
        grid = MemoryGrid(self.owners, on_request, on_reply)
        aggregator = SecureSum(observer or Observer(), self.roster, self.parameters, timeout_s, num_threads=1)
        names = self.names if cohort is None else cohort
        num_lanes = next(iter(self.owners.values())).vector.size
        cohort = {n: grid.ids[n] for n in names}
        return aggregator.sum(grid, cohort, request or round_request(), LanesOnly(num_lanes), timeout_s, groups)


class Attempt:
    """One exchange led by hand, as a server leads it that keeps to no rule; all owners announce keys at once.

    requests: what each owner is told in trip 1, where it is not the same for all.
    """

    def __init__(self, world: World, exchange: int = 0, requests: Mapping[str, wire.SumRequest] | None = None) -> None:
        told = requests or {}
        round_number = next((request.round for request in told.values()), 1)
        self.id = exchange_id(exchange, round_number)
        self.names = tuple(world.names)
        self._owners = world.owners
        self.records = {
            name: owner.half.begin(
                told.get(name, round_request(exchange=exchange)), owner.vector.copy(), owner.rings
            ).record
            for name, owner in sorted(world.owners.items())
        }
        self.dealt: dict[str, dict[str, SealedShares]] = {}

    def share_request(self, changes: Mapping[str, KeyRecord] | None = None) -> messages.ShareRequest:
        """The request of trip 2; `changes` replaces records."""
        return messages.ShareRequest(self.id, tuple({**self.records, **(changes or {})}.values()))

    def share(self, names: Iterable[str] | None = None) -> None:
        """Trip 2 among all owners, or those of `names`, who are all of U1."""
        members = tuple(self.names if names is None else names)
        request = messages.ShareRequest(self.id, tuple(self.records[name] for name in members))
        for name in members:
            dealt = self._owners[name].half.share(request).dealt
            self.dealt[name] = dict(zip((n for n in members if n != name), dealt, strict=True))

    def mask_request(self, holder: str, dealers: Iterable[str] | None = None) -> messages.MaskRequest:
        """The request of trip 3 for `holder`, with U2 = `dealers`."""
        u2 = tuple(self.dealt if dealers is None else dealers)
        return messages.MaskRequest(self.id, u2, tuple(self.dealt[d][holder] for d in u2 if d != holder))

    def mask(self, names: Iterable[str] | None = None, dealers: Iterable[str] | None = None) -> dict[str, Lanes]:
        """Trip 3 for `names`; return the masked vectors."""
        u2 = tuple(self.dealt if dealers is None else dealers)
        return {
            name: self._owners[name].half.mask(self.mask_request(name, u2)).lanes
            for name in (u2 if names is None else names)
        }

    def agree(self, names: Iterable[str] | None = None, survivors: Iterable[str] | None = None) -> dict[str, bytes]:
        """Trip 4 for `names`, with U3 = `survivors`; return the signatures."""
        request = messages.AgreeRequest(self.id, tuple(self.dealt if survivors is None else survivors))
        asked = request.survivors if names is None else names
        return {name: self._owners[name].half.agree(request).signature for name in asked}

    def unmask_request(self, signatures: Mapping[str, bytes]) -> messages.UnmaskRequest:
        """The request of trip 5."""
        return messages.UnmaskRequest(self.id, tuple(signatures), tuple(signatures.values()))


@dataclass(frozen=True)
class LanesOnly:
    """All that the secure sum asks a codec for."""

    num_lanes: int

    def check(self, lanes: Lanes) -> None:
        """No single vector can be seen."""
        raise AssertionError


class MemoryGrid(Grid):
    """Calls the owners directly, one after the other; a lost message is answered by Flower's own error."""

    def __init__(self, owners: Mapping[str, Owner], on_request: Hook | None, on_reply: Hook | None) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.ids = {name: 100 + i for i, name in enumerate(owners)}
        self._owners = {self.ids[name]: owner for name, owner in owners.items()}
        self._on_request = on_request or _pass
        self._on_reply = on_reply or _pass
        self._replies: dict[str, Message] = {}
        self._count = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer at once."""
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            self._replies[str(self._count)] = self._deliver(message)
            ids.append(str(self._count))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def _deliver(self, message: Message) -> Message:
        owner, kind = self._owners[message.metadata.dst_node_id], message.metadata.message_type
        content = self._on_request(kind, owner.name, message.content)
        if content is None:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        try:
            reply = self._on_reply(kind, owner.name, owner.answer(kind, content))
        except AgflError as error:
            owner.log.append(str(error))
            return Message(Error(100, str(error)), reply_to=message)
        if reply is None:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        return Message(reply, reply_to=message)

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface."""

    @property
    def run(self) -> Run:
        """Part of Flower's interface."""
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of Flower's interface."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """All owners are always there."""
        return list(self._owners)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Part of Flower's interface."""
        return self.pull_messages(self.push_messages(messages))


def _pass(kind: str, name: str, content: RecordDict) -> RecordDict:
    return content
