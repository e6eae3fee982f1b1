"""A server that keeps to no rule, among real nodes in this process: it leads exchanges by hand and opens their sums."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from agfl_client.approval.approvals import Approvals
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_models.errors import AgflError
from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire, wire
from agfl_protocol.messages.counting import CountRequest
from agfl_protocol.methods.elastic import BY_TIER, Elastic
from agfl_protocol.methods.method import Round, States
from agfl_protocol.methods.registry import broadcast_of, methods_of
from agfl_protocol.plans.client_plan import ClientPlan, client_plan_from_json
from agfl_protocol.plans.plan import Plan
from agfl_protocol.randomness import SECRET_BYTES, OwnerRandomness
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import apply_masks
from agfl_protocol.secagg.members import Members
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Layout, Total, Vector
from agfl_server.aggregation.unmasking import Recovery


class Refused(Exception):
    """A node did not answer: its name and its line."""

    def __init__(self, name: str, line: str) -> None:
        super().__init__(f"{name}: {line}")
        self.name, self.line = name, line


class HostileServer:
    """Real nodes of one owner a file, who approve whatever is proposed, and what a server does to them.

    files: NAME.jsonl; folder: for the nodes' ledgers; widths: that each device holds of an elastic model; seed: of the
    owners' randomness, None for secrets. Each sum is asked for under the next exchange, of the next round
    unless one is named. A shadow of each node draws as it does and answers in the open: what no server ever sees.
    """

    def __init__(
        self,
        config: RunConfig,
        files: Sequence[Path],
        folder: Path,
        policy: Policy | None = None,
        widths: Sequence[float] = (),
        seed: int | None = None,
    ) -> None:
        policy = (policy or Policy()).model_copy(update={"runs": "all"})
        signing = {path.stem: Ed25519PrivateKey.generate() for path in files}
        self.config, self.names = config, tuple(sorted(signing))
        self.roster = SigningRoster({name: key.public_key() for name, key in signing.items()})
        self.files = {path.stem: path for path in files}
        self.parameters = policy.parameters(len(files))
        self.nodes: dict[str, Node] = {}
        self.shadows: dict[str, Node] = {}
        for path, width in zip(files, widths or [1.0] * len(files), strict=True):
            name, home = path.stem, folder / path.stem
            home.mkdir(parents=True, exist_ok=True)
            own = policy.model_copy(update={"max_width": width})
            member = SecureMember(name, signing[name], self.roster, own, home)
            approvals = Approvals(home, own, "operator")
            secret = secrets.token_bytes(SECRET_BYTES)
            drawn = OwnerRandomness(secret) if seed is None else OwnerRandomness.of_seed(seed, name)
            self.nodes[name] = Node(
                name, path, "cpu", policy=own, member=member, folder=home, randomness=drawn, approvals=approvals
            )
            in_the_open = own.model_copy(update={"allow_plain": True})
            (home / "shadow").mkdir(exist_ok=True)
            self.shadows[name] = Node(name, path, "cpu", policy=in_the_open, folder=home / "shadow", randomness=drawn)
        self.layout = Layout.of(build_model(config.model, config.seed))
        self.plan = self._plan("run")
        self.exchange = self.round = self.sums = 0

    def begin(self, run_id: str) -> None:
        """Begin another run, which every owner approves."""
        self.exchange = self.round = 0
        self.propose(self._plan(run_id))

    def _plan(self, run_id: str) -> Plan:
        return Plan.of(self.config.client_plan, run_id, self.names, self.parameters.min_cohort, roster=self.roster.hash)

    def propose(self, plan: Plan | None = None) -> None:
        """Have every owner asked for its approval of a plan, that of this server by default."""
        self.plan = plan or self.plan
        for name in self.names:
            self._ask(name, lambda node: node.propose(wire.ProposeRequest(self.plan.to_json())).to_record())

    def request(self, model: Vector, **changes: Any) -> wire.RoundRequest:
        """Return the next request to train from `model`, as the plan has it but for `changes`."""
        self.exchange += 1
        if "round" not in changes:
            self.round += 1
        return self.request_of(self.config, model, **changes)

    def request_of(self, config: RunConfig | ClientPlan, model: Vector, **changes: Any) -> wire.RoundRequest:
        """Return a request with another configuration, under the numbers of now."""
        plan = config.client_plan if isinstance(config, RunConfig) else config
        request = wire.RoundRequest(
            run_id=self.plan.run_id,
            round=max(self.round, 1),
            exchange=self.exchange,
            plan_hash=self.plan.hash,
            client_plan=plan.to_json(),
            evaluate=False,
            train=True,
            model=model,
            plan=QuantizationPlan(2, self.plan.room(all_owners=bool(changes.get("full")))),
            arrays=first_arrays(plan, self.layout.size, train=changes.get("train", True)),
        )
        return replace(request, **changes)

    def sum(
        self,
        request: wire.RoundRequest | CountRequest,
        members: Collection[str] | None = None,
        survivors: Collection[str] | None = None,
        dealers: Collection[str] | None = None,
    ) -> Lanes:
        """Lead U1 = `members` through five trips, of whom `dealers`, U2, and `survivors`, U3, are not "lost".

        Raises:
            Refused: a node refuses a trip.
        """
        u1 = tuple(sorted(self.names if members is None else members))
        u2 = u1 if dealers is None else tuple(sorted(dealers))
        u3 = u2 if survivors is None else tuple(sorted(survivors))
        exchange, ctx0 = secure_wire.exchange_of(request), secure_wire.context_of(request, self.roster)
        records = [secure_wire.read_advertise_reply(reply, exchange).record for _, reply in self._begin(request, u1)]
        chosen = Members.of(ctx0, records)
        content = secure_wire.write_share_request(messages.ShareRequest(exchange, tuple(records)))
        dealt = {}
        for name, reply in self._all(u1, lambda member, _: member.share(content)):
            others = chosen.others(name)
            shares = secure_wire.read_share_reply(reply, exchange, len(others)).dealt
            dealt[name] = dict(zip(others, shares, strict=True))
        dealt = {name: dealt[name] for name in u2}
        total: Lanes | None = None
        for _, reply in self._all(u2, lambda member, name: member.mask(_mask_request(exchange, dealt, name)), u3):
            size = reply.array_records["arrays"]["lanes"].shape[0]
            lanes = secure_wire.read_mask_reply(reply, exchange, size).lanes
            total = lanes.copy() if total is None else total + lanes
        assert total is not None
        agree = secure_wire.write_agree_request(messages.AgreeRequest(exchange, u3))
        signed = {
            name: secure_wire.read_agree_reply(reply, exchange).signature
            for name, reply in self._all(u3, lambda member, _: member.agree(agree))
        }
        opening = secure_wire.write_unmask_request(messages.UnmaskRequest(exchange, u3, tuple(signed.values())))
        replies = {
            name: secure_wire.read_unmask_reply(reply, exchange, len(u2) - 1)
            for name, reply in self._all(u3, lambda member, _: member.unmask(opening))
        }
        apply_masks(total, Recovery(ctx0, chosen, self.parameters, dealt, u3, replies).masks(), num_threads=1)
        assert total[0] == len(u3), "the sum does not open"
        self.sums += 1
        return total

    def train(self, request: wire.RoundRequest, **sets: Collection[str]) -> Total:
        """Return `sum`, decoded: the sum of what owners send, each its update times its weight."""
        return self.codec(request).decode_sum(self.sum(request, **sets))

    def sent(self, name: str, request: wire.RoundRequest) -> Vector:
        """Return what a node adds to a sum, (d,): its update times its weight."""
        delta: Vector = self.codec(request).decode_sum(self.in_the_open(name, request)).delta
        return delta

    def in_the_open(self, name: str, request: wire.RoundRequest) -> Lanes:
        """Return a node's vector without its masks, which no server ever sees."""
        plan = plan_in(request)
        plain = plan.model_copy(update={"aggregation": plan.aggregation.model_copy(update={"type": "plain"})})
        asked = replace(request, client_plan=plain.to_json())
        return wire.read_vector(self.shadows[name].handle_round(asked), "lanes", np.uint64)

    def codec(self, request: wire.RoundRequest) -> UpdateCodec:
        """Return what a request's lanes hold."""
        return codec_of(request, self.layout)

    def _begin(
        self, request: wire.RoundRequest | CountRequest, names: Sequence[str]
    ) -> Iterator[tuple[str, RecordDict]]:
        record = request.to_record()
        for name in names:
            if isinstance(request, CountRequest):
                yield name, self._ask(name, lambda node: node.handle_count(CountRequest.from_record(record)))
            else:
                yield name, self._ask(name, lambda node: node.handle_round(wire.RoundRequest.from_record(record)))

    def _all(
        self,
        names: Sequence[str],
        trip: Callable[[SecureMember, str], RecordDict],
        heard: Collection[str] | None = None,
    ) -> Iterator[tuple[str, RecordDict]]:
        """Take a trip with each of `names`; of those not `heard` the reply is thrown away."""
        for name in names:
            reply = self._ask(name, lambda node: trip(node.member, node.name))
            if heard is None or name in heard:
                yield name, reply

    def _ask(self, name: str, question: Callable[[Node], RecordDict]) -> RecordDict:
        try:
            return question(self.nodes[name])
        except AgflError as error:
            raise Refused(name, str(error)) from None


def plan_in(request: wire.RoundRequest) -> ClientPlan:
    """Return the client plan that a request carries."""
    return client_plan_from_json(request.client_plan)


def codec_of(request: wire.RoundRequest, layout: Layout) -> UpdateCodec:
    """Return what a request's lanes hold."""
    plan = plan_in(request)
    return UpdateCodec.for_round(
        Round(plan, request.model.size // layout.size, request.arrays, plan.build_rings()),
        plan.build_task(),
        layout,
        request.plan,
        round_number=request.round,
        train=request.train,
        evaluate=request.evaluate,
    )


def first_arrays(plan: ClientPlan, size: int, *, train: bool = True) -> States:
    """Return what methods broadcast in round 1 beside a model of `size` parameters; of an elastic one all train all."""
    model = np.zeros(size, np.float32)
    methods = methods_of(Round(plan, rings=plan.build_rings()))
    sent = broadcast_of(methods, {method.name: method.initial_state(model) for method in methods}, train=train)
    return sent if plan.elastic is None else {**sent, **by_tier(*range(1, plan.max_rings + 1))}


def by_tier(*rings: int) -> States:
    """Return the broadcast by which owners of each tier train so many rings."""
    return {Elastic.name: {BY_TIER: np.array(rings, np.uint8)}}


def _mask_request(exchange: Any, dealt: dict[str, dict[str, messages.SealedShares]], holder: str) -> RecordDict:
    shares = tuple(dealt[dealer][holder] for dealer in dealt if dealer != holder)
    return secure_wire.write_mask_request(messages.MaskRequest(exchange, tuple(dealt), shares))
