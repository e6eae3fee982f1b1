"""CPU time of a secure sum: ours, beside the physical limit and Flower's SecAgg+, for n clients and d parameters.

One client's part and the server's unmasking run for real, on one thread, with real messages of all n clients; the
others' vectors have only their first lanes, where the opened sum is checked. "Lost" clients drop out after trip 2.
Times are medians in milliseconds, without training and without putting messages into Flower's records. "Codec" is
check, clip, weigh, quantize and pack; "context" hashes what was broadcast; "keys" is trips 1, 2, 4 and 5; "mask" is
trip 3; "rebuild" is the server's way from the replies of trip 5 to all seeds, "unmask" takes the masks away.

The limit comes from rates measured beside each row: for every mask its AES-256 key stream and its addition in the
cache, and every X25519 and Ed25519 operation that the protocol needs. It has no codec, context, memory or Python.
Flower's times are those of its own functions (flwr.common.secure_aggregation), each timed by itself on the same n, d
and threshold and MULTIPLIED by how often its client and its workflow call it; no run of theirs was made.

    python simulations/benchmarks/secure_sum.py [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import RecordDict
from flwr.common.secure_aggregation import ndarrays_arithmetic as flower_arrays
from flwr.common.secure_aggregation import quantization as flower_quantization
from flwr.common.secure_aggregation.crypto import shamir as flower_shamir
from flwr.common.secure_aggregation.crypto import symmetric_encryption as flower_channel
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives import asymmetric as flower_keys
from numpy.typing import NDArray

from agfl_client import masking
from agfl_client.masking_states import Advertised, Agreed, Masked, Shared, Terms
from agfl_protocol import secure_wire
from agfl_protocol.header import Header
from agfl_protocol.randomness import generator
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import AttemptId
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.masks import CHUNK_LANES, Mask, apply_masks
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.transforms import clipping, quantization
from agfl_protocol.transforms.clipping import Clipping
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import Quantization, Scales
from agfl_protocol.transforms.weighting import Weighting
from agfl_protocol.update import Lanes, Layout, Update
from agfl_protocol.wire import RoundRequest
from agfl_server.unmasking import Dealt, Recovery

COHORTS, SIZES, DROPOUTS = (10, 50, 100), (100_000, 1_000_000, 10_000_000), (0.0, 0.05, 0.3)
NUM_TENSORS, ELEMENT, MAX_WEIGHT = 16, 1e-3, 16384.0  # of the update that is measured
CHECKED_LANES, PASSES = 1000, 3
FLOWER_LEVELS, FLOWER_MODULUS, FLOWER_CLIP = 2**22, 2**32, 8.0  # its workflow's defaults

# Targets
CLIENT_LIMIT, SMALL_CLIENT_LIMIT, SERVER_LIMIT = 1.5, 2.0, 1.3  # times the limit; small: n = 10
CLIENT_GAIN, SERVER_GAIN = 10.0, 20.0  # times less than Flower
FIXED_UPLOAD = 16_000  # bytes beside 64/F bits an element
DOMINANT_S = 0.01  # masks dominate the server's work where they take longer than this, and four times as long as keys


def cpu_seconds(work: Callable[[], object], prepare: Callable[[], object] | None = None) -> float:
    """Return the median CPU time of `work`, each time after `prepare`: of one call, or of up to 9 in 0.3 seconds."""
    samples: list[float] = []
    while not samples or (len(samples) < 9 and sum(samples) < 0.3):
        if prepare is not None:
            prepare()
        began = time.process_time()
        work()
        samples.append(time.process_time() - began)
    return statistics.median(samples)


def each(work: Callable[[], object], calls: int = 20) -> float:
    """Return the median CPU time of one call of something short."""

    def repeat() -> None:
        for _ in range(calls):
            work()

    return cpu_seconds(repeat) / calls


@dataclass(frozen=True)
class Rates:
    """What this machine does on one thread: bytes a second, and seconds an operation."""

    stream: float
    add: float
    keygen: float
    exchange: float
    sign: float
    verify: float
    sha256: float

    @staticmethod
    def measure() -> Rates:
        """Measure on chunks of 256 KiB, and with keys that are loaded."""
        chunk, other = np.ones(CHUNK_LANES, np.uint64), np.ones(CHUNK_LANES, np.uint64)
        cipher, zeros, buffer = Mask(bytes(48), False).stream(0), bytes(chunk.nbytes), bytearray(chunk.nbytes + 15)
        private, public = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
        signing, text = Ed25519PrivateKey.generate(), bytes(300)
        verifying, signature = signing.public_key(), signing.sign(text)
        return Rates(
            stream=chunk.nbytes / each(lambda: cipher.update_into(zeros, buffer), 200),
            add=chunk.nbytes / each(lambda: np.add(chunk, other, out=chunk), 200),
            keygen=each(X25519PrivateKey.generate),
            exchange=each(lambda: private.exchange(public)),
            sign=each(lambda: signing.sign(text)),
            verify=each(lambda: verifying.verify(signature, text)),
            sha256=chunk.nbytes / each(lambda: hashlib.sha256(zeros)),
        )

    def masks(self, count: int, num_lanes: int) -> float:
        """Seconds that `count` masks over a vector take."""
        return count * 8 * num_lanes * (1 / self.stream + 1 / self.add)

    def client_keys(self, n: int, quorum: int) -> float:
        """Seconds of a client's keys: two drawn, two exchanges with each peer, and all signatures."""
        signatures = 2 * self.sign + (n - 1 + quorum) * self.verify
        return 2 * self.keygen + 2 * (n - 1) * self.exchange + signatures

    def server_keys(self, survivors: int, lost: int) -> float:
        """Seconds of the seeds that the lost share with the survivors."""
        return lost * (self.keygen + survivors * self.exchange)


@dataclass(frozen=True)
class FlowerKeys:
    """CPU seconds of what Flower's SecAgg+ does with keys and shares, each function timed by itself."""

    key_pair: float
    agreement: float
    seal: float
    open: float
    split: float  # of both secrets
    combine_seed: float
    combine_key: float

    @staticmethod
    @cache
    def measure(n: int, threshold: int, survivors: int) -> FlowerKeys:
        """Shares are combined from all survivors, as its workflow does."""
        (private, public), seed = flower_keys.generate_key_pairs(), bytes(range(32))
        key, peer = flower_keys.private_key_to_bytes(private), flower_keys.public_key_to_bytes(public)
        seeds, parts = (flower_shamir.create_shares(secret, threshold, n)[:survivors] for secret in (seed, key))
        channel, plain = _flower_agree(key, peer), share_keys_plaintext_concat(1, 2, seeds[0], parts[0])
        sealed = flower_channel.encrypt(channel, plain)
        return FlowerKeys(
            key_pair=each(lambda: flower_keys.private_key_to_bytes(flower_keys.generate_key_pairs()[0]), 5),
            agreement=each(lambda: _flower_agree(key, peer), 5),
            seal=each(lambda: flower_channel.encrypt(channel, plain)),
            open=each(lambda: flower_channel.decrypt(channel, sealed)),
            split=sum(
                cpu_seconds(partial(flower_shamir.create_shares, secret, threshold, n)) for secret in (seed, key)
            ),
            combine_seed=cpu_seconds(lambda: flower_shamir.combine_shares(seeds)),
            combine_key=cpu_seconds(lambda: flower_shamir.combine_shares(parts)),
        )


@dataclass(frozen=True)
class FlowerVectors:
    """CPU seconds of what Flower's SecAgg+ does with vectors. mask: one pseudo_rand_gen and its addition."""

    quantize: float
    mask: float
    modulo: float

    @staticmethod
    @cache
    def measure(d: int) -> FlowerVectors:
        """Time each function on one tensor of d elements."""
        delta, seed = _delta(d), bytes(range(32))

        def quantize() -> list[NDArray[np.int64]]:
            weighted = flower_arrays.parameters_multiply([delta], 0.9)
            return flower_quantization.quantize(weighted, FLOWER_CLIP, FLOWER_LEVELS)

        vector = [quantize()[0].astype(np.int64)]  # as it is after the first mask

        def mask() -> object:
            return flower_arrays.parameters_addition(vector, pseudo_rand_gen(seed, FLOWER_MODULUS, [(d,)]))

        return FlowerVectors(
            quantize=cpu_seconds(quantize),
            mask=cpu_seconds(mask),
            modulo=cpu_seconds(lambda: flower_arrays.parameters_mod(vector, FLOWER_MODULUS)),
        )


def flower_client(n: int, keys: FlowerKeys, vectors: FlowerVectors) -> float:
    """One client's part, as `secaggplus_mod` does it."""
    peers = (n - 1) * (2 * keys.agreement + keys.seal + keys.open)
    return 2 * keys.key_pair + keys.split + peers + vectors.quantize + n * vectors.mask + vectors.modulo


def flower_server(n: int, lost: int, keys: FlowerKeys, vectors: FlowerVectors) -> float:
    """Unmasking, as `SecAggPlusWorkflow.unmask_stage` does it."""
    alive = (n - lost) * (keys.combine_seed + vectors.mask)
    dead = lost * (keys.combine_key + (n - 1) * (keys.agreement + vectors.mask))
    return alive + dead + vectors.modulo


def _flower_agree(private: bytes, public: bytes) -> bytes:
    keys = flower_keys.bytes_to_private_key(private), flower_keys.bytes_to_public_key(public)
    return flower_channel.generate_shared_key(*keys)


def _delta(d: int) -> NDArray[np.float32]:
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
        sizes = [d // NUM_TENSORS] * (NUM_TENSORS - 1)
        shapes = tuple((size,) for size in (*sizes, d - sum(sizes)))
        layout, delta = Layout(tuple(f"tensor{k}" for k in range(NUM_TENSORS)), shapes), _delta(d)
        scale = 3 * n**0.25 * float(np.abs(delta).max())  # what `learn_scales` tends to
        scales = Scales(np.full(NUM_TENSORS, scale), float(np.linalg.norm(delta)) / n**0.5)
        plan = quantization.plan_round(scales, layout, n)
        metrics = {"loss": 2.0, "predictions": 100.0}
        header = Header((*metrics, clipping.CLIPPED, *quantization.metric_names(layout)), n)
        codec = UpdateCodec((Clipping(100.0), Weighting(MAX_WEIGHT)), Quantization(plan, layout, header))
        request = RoundRequest("benchmark", 1, 0, "{}", "0" * 64, False, True, np.zeros(d, np.float32), plan)
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
        attempt, names, first = terms[0].attempt, tuple(t.name for t in terms), terms[0].name
        vectors = _first_lanes(names, whole)
        begun = {t.name: masking.advertise(t, vectors[t.name].copy()) for t in terms}
        share_request = messages.ShareRequest(attempt, tuple(reply.record for _, reply in begun.values()))
        shared = {name: masking.share(state, share_request) for name, (state, _) in begun.items()}
        members = shared[first][0].members
        dealt = {name: dict(zip(members.others(name), reply.dealt, strict=True)) for name, (_, reply) in shared.items()}
        requests = {
            holder: messages.MaskRequest(attempt, names, tuple(dealt[d][holder] for d in names if d != holder))
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
        attempt_id, names = self.shared.terms.attempt, tuple(survivors)
        agree_request = messages.AgreeRequest(attempt_id, names)
        agreed = {name: masking.agree(self.states[name], agree_request) for name in names}
        signers = names[: self.quorum]
        signatures = tuple(agreed[name][1].signature for name in signers)
        unmask_request = messages.UnmaskRequest(attempt_id, signers, signatures)
        replies = {name: masking.unmask(agreed[name][0], unmask_request)[1] for name in names}
        return Opening(self, names, agree_request, agreed[names[0]][0], unmask_request, replies)


def _terms(work: Work) -> list[Terms]:
    signing = {f"owner-{i:03}": Ed25519PrivateKey.generate() for i in range(work.n)}
    roster = SigningRoster({name: key.public_key() for name, key in signing.items()})
    attempt: AttemptId = secure_wire.attempt_of(work.request)
    ctx0 = secure_wire.context_of(work.request, roster)
    parameters = Parameters.of(work.n)
    return [Terms(name, key, roster, parameters, attempt, work.n, ctx0) for name, key in signing.items()]


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

    attempt: Attempt
    survivors: tuple[str, ...]
    agree_request: messages.AgreeRequest
    agreed: Agreed
    unmask_request: messages.UnmaskRequest
    replies: Mapping[str, messages.UnmaskReply]

    def rebuild(self) -> list[Mask]:
        """Return what is left to take away, as the server does after trip 5."""
        attempt = self.attempt
        return Recovery(
            attempt.ctx0, attempt.members, attempt.parameters, attempt.dealt, self.survivors, self.replies
        ).masks()

    def sum_of_masked(self) -> Lanes:
        """Return the sum after trip 3: whole vectors' worth of words, of which the first lanes are everybody's."""
        total = self.attempt.masked[self.survivors[0]].copy()
        for name in self.survivors[1:]:
            total[:CHECKED_LANES] += self.attempt.masked[name]
        return total

    def check(self, opened: Lanes) -> None:
        """Exit unless the first lanes hold just the sum over the survivors."""
        vectors = [self.attempt.vectors[name] for name in self.survivors]
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
        attempt = opening.attempt
        terms, lanes = attempt.shared.terms, attempt.shared.lanes
        fresh = [attempt.shared]

        def refresh() -> None:
            fresh[0] = replace(attempt.shared, lanes=lanes.copy())

        trips = (
            lambda: masking.advertise(terms, lanes),
            lambda: masking.share(attempt.advertised, attempt.share_request),
            lambda: masking.agree(attempt.states[terms.name], opening.agree_request),
            lambda: masking.unmask(opening.agreed, opening.unmask_request),
        )
        codec = cpu_seconds(work.encode)
        time.sleep(0.1)  # whatever threads BLAS woke there wait busily for a while
        return ClientTimes(
            codec=codec,
            context=cpu_seconds(lambda: secure_wire.context_of(work.request, terms.roster)),
            keys=sum(map(cpu_seconds, trips)),
            mask=cpu_seconds(lambda: masking.mask(fresh[0], attempt.mask_request), refresh),
            upload=sum(map(_payload, _records(opening))),
        )


def _records(opening: Opening) -> Iterator[RecordDict]:
    """Yield the content of all messages that the first client sends."""
    attempt = opening.attempt
    terms = attempt.shared.terms
    yield secure_wire.write_advertise_reply(messages.AdvertiseReply(terms.attempt, attempt.advertised.record))
    dealt = tuple(attempt.dealt[terms.name].values())
    yield secure_wire.write_share_reply(messages.ShareReply(terms.attempt, dealt))
    yield secure_wire.write_mask_reply(messages.MaskReply(terms.attempt, attempt.masked[terms.name]))
    yield secure_wire.write_agree_reply(masking.agree(attempt.states[terms.name], opening.agree_request)[1])
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


RecordT = TypeVar("RecordT", Rates, ClientTimes, ServerTimes)


def _median(records: Sequence[RecordT]) -> RecordT:
    """Return the median of each field."""
    return type(records[0])(*map(statistics.median, zip(*map(astuple, records), strict=True)))


@dataclass(frozen=True)
class Case:
    """One row: what was measured, its limit and Flower's time."""

    work: Work
    lost: int
    client: ClientTimes
    client_limit: float
    hash_limit: float
    client_flower: float
    server: ServerTimes
    server_mask_limit: float
    server_key_limit: float
    server_flower: float

    @staticmethod
    def measure(work: Work, attempt: Attempt, lost: int) -> Case:
        """Measure client, rates and server in turn, PASSES times, since others use this machine; take medians."""
        n, num_lanes, survivors = work.n, work.codec.num_lanes, work.n - lost
        opening = attempt.open(attempt.members.names[:survivors])
        passes = [
            (ClientTimes.measure(work, opening), Rates.measure(), ServerTimes.measure(opening)) for _ in range(PASSES)
        ]
        client, rates = _median([client for client, _, _ in passes]), _median([rates for _, rates, _ in passes])
        server = _median([server for _, _, server in passes])
        keys = FlowerKeys.measure(n, attempt.parameters.threshold, survivors)
        vectors = FlowerVectors.measure(work.d)
        return Case(
            work=work,
            lost=lost,
            client=client,
            client_limit=rates.masks(n, num_lanes) + rates.client_keys(n, attempt.quorum),
            hash_limit=4 * work.d / rates.sha256,
            client_flower=flower_client(n, keys, vectors),
            server=server,
            server_mask_limit=rates.masks(survivors + lost * survivors, num_lanes),
            server_key_limit=rates.server_keys(survivors, lost),
            server_flower=flower_server(n, lost, keys, vectors),
        )

    @property
    def allowed_upload(self) -> float:
        """Bytes."""
        return 8 * self.work.d / self.work.fields_per_lane + FIXED_UPLOAD

    @property
    def server_limit(self) -> float:
        """Seconds."""
        return self.server_mask_limit + self.server_key_limit

    @property
    def masks_dominate(self) -> bool:
        """Whether the server's limit is one of masks, and long enough to be measured against."""
        return self.server_mask_limit >= max(DOMINANT_S, 4 * self.server_key_limit)


class Verdicts:
    """Which targets were met."""

    def __init__(self) -> None:
        self._rows: dict[str, list[bool]] = {}

    def judge(self, target: str, applies: bool, met: bool) -> str:
        """Return what stands beside a number, and count it where the target applies."""
        if not applies:
            return "-"
        self._rows.setdefault(target, []).append(met)
        return "met" if met else "MISSED"

    def lines(self) -> Iterator[str]:
        """Yield one line a target."""
        for target, rows in self._rows.items():
            yield f"{'met' if all(rows) else 'MISSED':<6}  {target}: met in {sum(rows)} of {len(rows)} rows"


def client_rows(cases: Iterable[Case], verdicts: Verdicts) -> Iterator[str]:
    """Yield the table of the client; its last two ratios are for the reader, no target stands on them."""
    yield (
        f"{'n':>4} {'d':>9} {'lost':>4} {'F':>2} {'codec':>7} {'context':>8} {'keys':>7} {'mask':>8} {'total':>8} "
        f"{'limit':>8} {'ratio':>6} {'':<6} {'Flower':>9} {'less':>6} {'':<6} {'upload':>9} {'allowed':>9} {'':<6} "
        f"{'no codec':>8} {'SHA-256 in limit':>16}"
    )
    for case in cases:
        work, times = case.work, case.client
        ratio, gain = times.total / case.client_limit, case.client_flower / times.total
        bound, where = (CLIENT_LIMIT, "n >= 50") if work.n >= 50 else (SMALL_CLIENT_LIMIT, "n = 10")
        limit = verdicts.judge(f"client CPU <= {bound:g} x limit ({where})", True, ratio <= bound)
        gain_rule = f"client CPU at least {CLIENT_GAIN:g} times less than Flower's (d >= 1M)"
        flower = verdicts.judge(gain_rule, work.d >= 1_000_000, gain >= CLIENT_GAIN)
        upload_rule = f"upload <= 64/F bits an element + {FIXED_UPLOAD} bytes"
        upload = verdicts.judge(upload_rule, True, times.upload <= case.allowed_upload)
        without = (times.total - times.codec) / case.client_limit
        yield (
            f"{work.n:>4} {work.d:>9} {case.lost:>4} {work.fields_per_lane:>2} {_ms(times.codec, 7)} "
            f"{_ms(times.context)} {_ms(times.keys, 7)} {_ms(times.mask)} {_ms(times.total)} {_ms(case.client_limit)} "
            f"{ratio:>6.2f} {limit:<6} {_ms(case.client_flower, 9)} {gain:>6.1f} {flower:<6} {times.upload:>9} "
            f"{case.allowed_upload:>9.0f} {upload:<6} {without:>8.2f} "
            f"{times.total / (case.client_limit + case.hash_limit):>16.2f}"
        )


def server_rows(cases: Iterable[Case], verdicts: Verdicts) -> Iterator[str]:
    """Yield the table of the server."""
    yield (
        f"{'n':>4} {'d':>9} {'lost':>4} {'rebuild':>8} {'unmask':>9} {'total':>9} {'limit':>9} {'of masks':>9} "
        f"{'ratio':>6} {'':<6} {'Flower':>11} {'less':>7}"
    )
    limit_rule = f"server CPU <= {SERVER_LIMIT:g} x limit where masks dominate (over {DOMINANT_S * 1e3:g} ms, 4 x keys)"
    for case in cases:
        work, times = case.work, case.server
        ratio, gain = times.total / case.server_limit, case.server_flower / times.total
        limit = verdicts.judge(limit_rule, case.masks_dominate, ratio <= SERVER_LIMIT)
        less = f"server CPU at least {SERVER_GAIN:g} times less than Flower's (n >= 50)"
        flower = verdicts.judge(less, work.n >= 50, gain >= SERVER_GAIN)
        yield (
            f"{work.n:>4} {work.d:>9} {case.lost:>4} {_ms(times.rebuild)} {_ms(times.unmask, 9)} {_ms(times.total, 9)} "
            f"{_ms(case.server_limit, 9)} {_ms(case.server_mask_limit, 9)} {ratio:>6.2f} {limit:<6} "
            f"{_ms(case.server_flower, 11)} {gain:>7.1f} {flower}"
        )


def _ms(seconds: float, width: int = 8) -> str:
    return f"{seconds * 1e3:>{width}.2f}"


def _describe(rates: Rates) -> str:
    return (
        f"AES-256-CTR {rates.stream / 1e9:.2f} GB/s, uint64 add {rates.add / 1e9:.1f} GB/s on 256 KiB; X25519 keys "
        f"{rates.keygen * 1e6:.0f} us, exchange {rates.exchange * 1e6:.0f} us; Ed25519 sign {rates.sign * 1e6:.0f} us, "
        f"verify {rates.verify * 1e6:.0f} us; SHA-256 {rates.sha256 / 1e9:.2f} GB/s"
    )


def _load() -> str:
    return "load average " + " ".join(f"{load:.1f}" for load in os.getloadavg())


def measure(cohorts: Sequence[int], sizes: Sequence[int]) -> Iterator[Case]:
    """Yield all rows, telling on standard error how far it is."""
    for n in cohorts:
        for d in sizes:
            print(f"n = {n}, d = {d}: {_load()}", file=sys.stderr, flush=True)
            work = Work.of(n, d)
            attempt = Attempt.run(work)
            for dropout in DROPOUTS:
                yield Case.measure(work, attempt, int(n * dropout))


def main() -> None:
    """Measure and print both tables and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="n in {10, 50}, d in {100k, 1M}")
    quick = parser.parse_args().quick
    began = time.monotonic()
    print(f"at the start: {_load()}; {_describe(Rates.measure())}")
    cases = list(measure(COHORTS[:2] if quick else COHORTS, SIZES[:2] if quick else SIZES))
    print(f"at the end:   {_load()}; {_describe(Rates.measure())}")
    verdicts = Verdicts()
    for title, rows in (("client", client_rows(cases, verdicts)), ("server", server_rows(cases, verdicts))):
        print(f"\n{title}: CPU milliseconds, one thread; Flower's are its functions' times, multiplied")
        print(*rows, sep="\n")
    print("", *verdicts.lines(), f"took {time.monotonic() - began:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
