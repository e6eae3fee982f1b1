"""One exchange at a secure sum with real messages of all clients, taken trip by trip, so that each can be timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from cpu_time import cpu_seconds
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from numpy.typing import NDArray

from agfl_client.secure import masking
from agfl_client.secure.masking_states import Advertised, Agreed, Masked, Shared, Terms
from agfl_protocol.messages import secure_wire
from agfl_protocol.messages.header import Header
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.methods import clipping
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.divergence import DIVERGED, Divergence
from agfl_protocol.methods.weighting import Weighting
from agfl_protocol.randomness import generator
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import Mask, apply_masks
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.transforms import quantization
from agfl_protocol.transforms.basis import Basis
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import Quantization
from agfl_protocol.update import Update
from agfl_server.aggregation.unmasking import Dealt, Recovery

ELEMENT, MAX_WEIGHT = 1e-3, 16384.0  # of the update that is measured
CHECKED_LANES = 1000


def random_delta(d: int) -> NDArray[np.float32]:
    """Return the update that is measured, (d,)."""
    return np.random.default_rng(0).standard_normal(d, np.float32) * np.float32(ELEMENT)


@dataclass(frozen=True)
class Work:
    """A round of n clients and d parameters; `update` is that of the client that is measured, the first."""

    n: int
    d: int
    codec: UpdateCodec
    request: RoundRequest
    update: Update

    @staticmethod
    def of(n: int, d: int) -> Work:
        """Plan the round as the server does, after a sum of updates that had nothing in common."""
        delta = random_delta(d)
        norm = float(np.linalg.norm(delta))
        plan = quantization.plan_round(norm, norm / n**0.5, 1, n)
        metrics = {"loss": 2.0, "predictions": 100.0}
        header = Header((*metrics, DIVERGED, clipping.CLIPPED, *clipping.ABOVE, *quantization.metric_names()), n)
        codec = UpdateCodec(
            (Divergence(), Clipping(norm), Weighting(MAX_WEIGHT)), Quantization(plan, norm, Basis(d, bytes(48)), header)
        )
        request = RoundRequest(
            run_id="benchmark",
            round=1,
            exchange=1,
            plan_hash="0" * 64,
            client_plan="{}",
            evaluate=False,
            train=True,
            model=np.zeros(d, np.float32),
            plan=plan,
        )
        return Work(n, d, codec, request, Update(delta, 0.9 * MAX_WEIGHT, metrics))

    @property
    def fields_per_lane(self) -> int:
        """F."""
        return self.request.plan.fields_per_lane

    def encode(self) -> Lanes:
        """Return the vector of the client that is measured."""
        return self.codec.encode(replace(self.update), generator(0, "owner-000", 1, "rounding"))


@dataclass(frozen=True)
class Attempt:
    """Trips 1 to 3 of all n clients, with what the first of them needs to take its own again.

    vectors, masked: everybody's first lanes before masks, and after; those of the first client are whole in `masked`.
    """

    ctx0: bytes
    parameters: Parameters
    members: Members
    dealt: Dealt
    vectors: Mapping[str, Lanes]
    masked: Mapping[str, Lanes]
    states: Mapping[str, Masked]
    advertised: Advertised
    shared: Shared
    share_request: messages.ShareRequest
    mask_request: messages.MaskRequest

    @staticmethod
    def run(work: Work) -> Attempt:
        """Draw owners and lead them through the trips."""
        terms, whole = _terms(work), work.encode()
        exchange, names, first = terms[0].exchange, tuple(t.name for t in terms), terms[0].name
        vectors = _first_lanes(names, whole)
        begun = {t.name: masking.advertise(t, vectors[t.name].copy()) for t in terms}
        share_request = messages.ShareRequest(exchange, tuple(reply.record for _, reply in begun.values()))
        shared = {name: masking.share(state, share_request) for name, (state, _) in begun.items()}
        members = shared[first][0].members
        dealt = {name: dict(zip(members.others(name), reply.dealt, strict=True)) for name, (_, reply) in shared.items()}
        requests = {
            holder: messages.MaskRequest(exchange, names, tuple(dealt[d][holder] for d in names if d != holder))
            for holder in names
        }
        states = {name: state for name, (state, _) in shared.items()}
        states[first] = replace(states[first], lanes=whole)
        answers = {name: masking.mask(states[name], requests[name]) for name in names}
        return Attempt(
            ctx0=terms[0].ctx0,
            parameters=terms[0].parameters,
            members=members,
            dealt=dealt,
            vectors=vectors,
            masked={name: reply.lanes for name, (_, reply) in answers.items()},
            states={name: state for name, (state, _) in answers.items()},
            advertised=begun[first][0],
            shared=states[first],
            share_request=share_request,
            mask_request=requests[first],
        )

    @property
    def quorum(self) -> int:
        """q."""
        return self.parameters.quorum(len(self.members.records))

    def open(self, survivors: Sequence[str]) -> Opening:
        """Trips 4 and 5 of the survivors, of whom the first client is one."""
        exchange_id, names = self.shared.terms.exchange, tuple(survivors)
        agree_request = messages.AgreeRequest(exchange_id, names)
        agreed = {name: masking.agree(self.states[name], agree_request) for name in names}
        signers = names[: self.quorum]
        signatures = tuple(agreed[name][1].signature for name in signers)
        unmask_request = messages.UnmaskRequest(exchange_id, signers, signatures)
        replies = {name: masking.unmask(agreed[name][0], unmask_request)[1] for name in names}
        return Opening(self, names, agree_request, agreed[names[0]][0], unmask_request, replies)


def _terms(work: Work) -> list[Terms]:
    signing = {f"owner-{i:03}": Ed25519PrivateKey.generate() for i in range(work.n)}
    roster = SigningRoster({name: key.public_key() for name, key in signing.items()})
    exchange: ExchangeId = secure_wire.exchange_of(work.request)
    ctx0 = secure_wire.context_of(work.request, roster)
    parameters = Parameters.of(work.n)
    drawn = frozenset(signing)
    return [Terms(name, key, roster, parameters, exchange, work.n, ctx0, drawn, ()) for name, key in signing.items()]


def _first_lanes(names: Sequence[str], whole: Lanes) -> dict[str, Lanes]:
    """Return everybody's first lanes: those of `whole` for the first client, a count and anything for the others."""
    rng = np.random.default_rng(1)
    vectors = {name: rng.integers(0, 2**64, CHECKED_LANES, np.uint64) for name in names}
    for vector in vectors.values():
        vector[0] = 1
    return {**vectors, names[0]: whole[:CHECKED_LANES].copy()}


@dataclass(frozen=True)
class Opening:
    """Trips 4 and 5 with those who survived trip 3."""

    exchange: Attempt
    survivors: tuple[str, ...]
    agree_request: messages.AgreeRequest
    agreed: Agreed
    unmask_request: messages.UnmaskRequest
    replies: Mapping[str, messages.UnmaskReply]

    def rebuild(self) -> list[Mask]:
        """Return what is left to take away, as the server does after trip 5."""
        exchange = self.exchange
        return Recovery(
            exchange.ctx0, exchange.members, exchange.parameters, exchange.dealt, self.survivors, self.replies
        ).masks()

    def sum_of_masked(self) -> Lanes:
        """Return the sum after trip 3: whole vectors' worth of words, of which the first lanes are everybody's."""
        total = self.exchange.masked[self.survivors[0]].copy()
        for name in self.survivors[1:]:
            total[:CHECKED_LANES] += self.exchange.masked[name]
        return total

    def check(self, opened: Lanes) -> None:
        """Exit unless the first lanes hold just the sum over the survivors."""
        vectors = [self.exchange.vectors[name] for name in self.survivors]
        if not np.array_equal(opened[:CHECKED_LANES], np.sum(vectors, axis=0, dtype=np.uint64)):
            raise SystemExit("the opened sum is wrong")


@dataclass(frozen=True)
class ClientTimes:
    """CPU seconds of the first client; `upload` is what it sends, in bytes."""

    codec: float
    context: float
    keys: float
    mask: float
    upload: int

    @property
    def total(self) -> float:
        """All that it does beside training and Flower's records."""
        return self.codec + self.context + self.keys + self.mask

    @staticmethod
    def measure(work: Work, opening: Opening) -> ClientTimes:
        """Take each trip again and again; trip 3 masks in place, so it gets fresh lanes each time."""
        exchange = opening.exchange
        terms, lanes = exchange.shared.terms, exchange.shared.lanes
        fresh = [exchange.shared]

        def refresh() -> None:
            fresh[0] = replace(exchange.shared, lanes=lanes.copy())

        trips = (
            lambda: masking.advertise(terms, lanes),
            lambda: masking.share(exchange.advertised, exchange.share_request),
            lambda: masking.agree(exchange.states[terms.name], opening.agree_request),
            lambda: masking.unmask(opening.agreed, opening.unmask_request),
        )
        codec = cpu_seconds(work.encode)
        return ClientTimes(
            codec=codec,
            context=cpu_seconds(lambda: secure_wire.context_of(work.request, terms.roster)),
            keys=sum(map(cpu_seconds, trips)),
            mask=cpu_seconds(lambda: masking.mask(fresh[0], exchange.mask_request), refresh),
            upload=sum(map(_payload, _records(opening))),
        )


def _records(opening: Opening) -> Iterator[RecordDict]:
    """Yield the content of all messages that the first client sends."""
    exchange = opening.exchange
    terms = exchange.shared.terms
    yield secure_wire.write_advertise_reply(messages.AdvertiseReply(terms.exchange, exchange.advertised.record))
    dealt = tuple(exchange.dealt[terms.name].values())
    yield secure_wire.write_share_reply(messages.ShareReply(terms.exchange, dealt))
    yield secure_wire.write_mask_reply(messages.MaskReply(terms.exchange, exchange.masked[terms.name]))
    yield secure_wire.write_agree_reply(masking.agree(exchange.states[terms.name], opening.agree_request)[1])
    yield secure_wire.write_unmask_reply(opening.replies[terms.name])


def _payload(record: RecordDict) -> int:
    """Return the bytes of a message's names and values, without Flower's envelope; numbers count 8."""
    arrays = (array for arrays in record.array_records.values() for array in arrays.values())
    fields = (item for config in record.config_records.values() for item in config.items())
    scalars = sum(len(key) + (len(value) if isinstance(value, (bytes, str)) else 8) for key, value in fields)
    return sum(len(array.data) for array in arrays) + scalars


@dataclass(frozen=True)
class ServerTimes:
    """CPU seconds of opening the sum."""

    rebuild: float
    unmask: float

    @property
    def total(self) -> float:
        """From the last reply to the open lanes."""
        return self.rebuild + self.unmask

    @staticmethod
    def measure(opening: Opening) -> ServerTimes:
        """Open the sum again and again, and check it."""
        masks, total = opening.rebuild(), [opening.sum_of_masked()]

        def refresh() -> None:
            total[0] = opening.sum_of_masked()

        times = ServerTimes(cpu_seconds(opening.rebuild), cpu_seconds(lambda: apply_masks(total[0], masks), refresh))
        opening.check(total[0])
        return times
