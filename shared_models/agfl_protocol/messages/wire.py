"""The wire: every message that server and client exchange, with its fields, and nothing else.

What a client sends on its own is a privacy decision, and these are all of them: its NAME and version
(`IdentifyReply`), what its owner says to a plan and whether it wants the trained model (`ProposeReply`), and one vector
of integers a round (`RoundReply`), of training and evaluating as of counting for a tokenizer (`counting.py`); where
sums are secure, that vector is masked, and the messages around it are those of `secure_wire.py`.
Legend: d parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import DTypeLike, NDArray

from agfl_models.errors import WireError
from agfl_protocol.messages.array_bytes import npy_header, to_array
from agfl_protocol.methods.method import NO_STATES, States
from agfl_protocol.plans.client_plan import hash_of
from agfl_protocol.secagg.context import Broadcast
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Vector
from agfl_protocol.version import PROTOCOL_VERSION

IDENTIFY, PROPOSE, MODEL, FINISH = "query.identify", "query.propose", "query.model", "query.finish"
TRAIN, EVALUATE = "train", "evaluate"
_CONFIG, _ARRAYS = "config", "arrays"
_MAX_SOFTWARE = 64
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}/[a-z][a-z0-9_]{0,63}")
_DTYPES = ("float32", "int64", "uint8")

Scalar: TypeAlias = bool | int | str | bytes
ScalarT = TypeVar("ScalarT", bool, int, str, bytes)


@dataclass(frozen=True)
class IdentifyRequest:
    """Server to a node it does not know yet: who are you?"""

    def to_record(self) -> RecordDict:
        """Return the message content."""
        return new_record({})


@dataclass(frozen=True)
class IdentifyReply:
    """The node's NAME; the server checks it against the name under which the node's key is registered.

    software: the version of the package that it runs.
    """

    name: str
    software: str = ""

    def to_record(self) -> RecordDict:
        """Return the message content."""
        return new_record({"name": self.name, "software": self.software})

    @staticmethod
    def from_record(record: RecordDict) -> IdentifyReply:
        """Read a reply; raises WireError."""
        software = read_scalar(record, "software", str)
        if len(software) > _MAX_SOFTWARE or not software.isprintable():
            raise WireError("AGFL-WIRE-035", f"software: must be at most {_MAX_SOFTWARE} printable characters")
        return IdentifyReply(read_scalar(record, "name", str), software)


class Answer(StrEnum):
    """What an owner says to a plan."""

    APPROVED = "approved"
    PENDING = "pending"
    REFUSED = "refused"


@dataclass(frozen=True)
class ProposeRequest:
    """Server to a node: the plan of the run, which its owner must approve before it takes part."""

    plan_json: str

    def to_record(self) -> RecordDict:
        """Return the message content."""
        return new_record({"plan_json": self.plan_json})

    @staticmethod
    def from_record(record: RecordDict) -> ProposeRequest:
        """Read a request; raises WireError."""
        return ProposeRequest(read_scalar(record, "plan_json", str))


@dataclass(frozen=True)
class ProposeReply:
    """The owner's answer to a plan, and whether it wants the trained model in the end."""

    answer: Answer
    keeps_model: bool = False

    def to_record(self) -> RecordDict:
        """Return the message content."""
        return new_record({"answer": self.answer.value, "keeps_model": self.keeps_model})

    @staticmethod
    def from_record(record: RecordDict) -> ProposeReply:
        """Read a reply; raises WireError."""
        text = read_scalar(record, "answer", str)
        if text not in set(Answer):
            raise WireError("AGFL-WIRE-036", f"answer: must be one of {', '.join(Answer)}, got {text[:80]!r}")
        return ProposeReply(Answer(text), read_scalar(record, "keeps_model", bool))


class SumRequest(Protocol):
    """What every sum needs of the request that starts it, whatever is summed."""

    @property
    def run_id(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def exchange(self) -> int: ...
    @property
    def plan_hash(self) -> str: ...
    @property
    def client_plan(self) -> str: ...
    @property
    def client_plan_hash(self) -> str: ...
    @property
    def kind(self) -> str:
        """The message type."""

    @property
    def max_cohort(self) -> int:
        """The clients for which the integers of the sum have room."""

    @property
    def broadcast_hash(self) -> bytes:
        """SHA-256 of all that the request says and that every client must have received alike."""

    def to_record(self) -> RecordDict:
        """Return the message content."""


@dataclass(frozen=True)
class RoundRequest:
    """Server to each client of a cohort: the global model and what to do with it.

    round: what the run counts; exchange: what no message is ever asked for again under. plan_hash: of the plan that the
    owner approved; client_plan: the part of it by which this round goes, as canonical JSON. evaluate: add the
    evaluation sums of `model`; train: add the update trained from `model`; full: evaluate on all validation examples
    instead of some drawn afresh, never beside training. model: float32 (d,), or (m d,) where m - 1 models follow of
    which only the loss is asked for (`candidates`).
    plan: the public quantizer of this round; where it only evaluates, just `max_cohort` counts.
    arrays: what methods broadcast beside the model, by their names; `Method.arrays` tells what each may be.
    """

    run_id: str
    round: int
    exchange: int
    plan_hash: str
    client_plan: str
    evaluate: bool = field(kw_only=True)
    train: bool = field(kw_only=True)
    model: Vector
    plan: QuantizationPlan
    arrays: States = field(default_factory=lambda: NO_STATES)
    full: bool = field(default=False, kw_only=True)

    @property
    def kind(self) -> str:
        """The message type."""
        return TRAIN if self.train else EVALUATE

    @property
    def max_cohort(self) -> int:
        """The clients for which the fields have room."""
        return self.plan.max_cohort

    @property
    def client_plan_hash(self) -> str:
        """SHA-256 of the client plan as it travels, in hexadecimal."""
        return hash_of(self.client_plan)

    @cached_property
    def broadcast_hash(self) -> bytes:
        """SHA-256 of all that this request says and that every client must have received alike."""
        return Broadcast(
            self.plan_hash,
            self.client_plan,
            self.plan.fields_per_lane,
            self.plan.max_cohort,
            self.model,
            _flat(self.arrays),
            train=self.train,
            evaluate=self.evaluate,
            full=self.full,
        ).hash

    def without_arrays(self, *, is_hashed: bool) -> RoundRequest:
        """Return what an answer needs once the model and the arrays are used; their memory is then free.

        is_hashed: keep `broadcast_hash`, which is else empty: it takes a while.
        """
        left = replace(self, model=self.model[:0].copy(), arrays=NO_STATES)
        vars(left)["broadcast_hash"] = self.broadcast_hash if is_hashed else b""
        return left

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {
            "run_id": self.run_id,
            "round": self.round,
            "exchange": self.exchange,
            "plan_hash": self.plan_hash,
            "client_plan": self.client_plan,
            "evaluate": self.evaluate,
            "train": self.train,
            "full": self.full,
            "fields_per_lane": self.plan.fields_per_lane,
            "max_cohort": self.plan.max_cohort,
        }
        return new_record(scalars, {"model": self.model, **_flat(self.arrays)})

    @staticmethod
    def from_record(record: RecordDict) -> RoundRequest:
        """Read a request; raises WireError."""
        plan = QuantizationPlan(
            fields_per_lane=read_bounded(record, "fields_per_lane", 1, 4),
            max_cohort=read_bounded(record, "max_cohort", 1, 2**20),
        )
        if plan.levels < 2:
            raise WireError(
                "AGFL-WIRE-037",
                f"max_cohort: must leave levels in {plan.fields_per_lane} fields, got {plan.max_cohort}",
            )
        train, full = read_scalar(record, "train", bool), read_scalar(record, "full", bool)
        if train and full:
            raise WireError("AGFL-WIRE-038", "full: must be false in a request that trains, got true")
        return RoundRequest(
            run_id=read_scalar(record, "run_id", str),
            round=read_bounded(record, "round", 1, 2**31),
            exchange=read_bounded(record, "exchange", 0, 2**31),
            plan_hash=read_scalar(record, "plan_hash", str),
            client_plan=read_scalar(record, "client_plan", str),
            evaluate=read_scalar(record, "evaluate", bool),
            train=train,
            full=full,
            model=read_vector(record, "model", np.float32),
            plan=plan,
            arrays=_read_arrays(record),
        )


@dataclass(frozen=True)
class RoundReply:
    """A client's contribution to the sum: lanes, uint64, of the length that the round prescribes."""

    client_plan_hash: str
    round: int
    exchange: int
    lanes: Lanes

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {
            "client_plan_hash": self.client_plan_hash,
            "round": self.round,
            "exchange": self.exchange,
        }
        return new_record(scalars, {"lanes": self.lanes})

    @staticmethod
    def from_record(record: RecordDict, request: SumRequest, num_lanes: int) -> RoundReply:
        """Read a reply to `request`.

        Raises:
            WireError: wrong version, hash of the client plan, round, exchange, type or length.
        """
        _expect(record, "client_plan_hash", request.client_plan_hash)
        _expect(record, "round", request.round)
        _expect(record, "exchange", request.exchange)
        lanes = read_vector(record, "lanes", np.uint64, num_lanes)
        return RoundReply(request.client_plan_hash, request.round, request.exchange, lanes)


@dataclass(frozen=True)
class ModelRequest:
    """Server to a node whose owner keeps the model: that of the last round, float32 (d,), and what it is."""

    run_id: str
    plan_hash: str
    round: int
    client_plan: str
    model: Vector

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {
            "run_id": self.run_id,
            "plan_hash": self.plan_hash,
            "round": self.round,
            "client_plan": self.client_plan,
        }
        return new_record(scalars, {"model": self.model})

    @staticmethod
    def from_record(record: RecordDict) -> ModelRequest:
        """Read a request; raises WireError."""
        return ModelRequest(
            run_id=read_scalar(record, "run_id", str),
            plan_hash=read_scalar(record, "plan_hash", str),
            round=read_bounded(record, "round", 0, 2**31),
            client_plan=read_scalar(record, "client_plan", str),
            model=read_vector(record, "model", np.float32),
        )


@dataclass(frozen=True)
class FinishRequest:
    """Server to every node: the run is over."""

    run_id: str

    def to_record(self) -> RecordDict:
        """Return the message content."""
        return new_record({"run_id": self.run_id})

    @staticmethod
    def from_record(record: RecordDict) -> FinishRequest:
        """Read a request; raises WireError."""
        return FinishRequest(read_scalar(record, "run_id", str))


def acknowledgment() -> RecordDict:
    """Return the content of a reply that says nothing but "understood"."""
    return new_record({})


def check_version(record: RecordDict) -> None:
    """Raise WireError unless the message speaks this protocol version."""
    version = read_scalar(record, "version", int, versioned=True)
    if version != PROTOCOL_VERSION:
        raise WireError(
            "AGFL-WIRE-039", f"version: this side speaks protocol {PROTOCOL_VERSION}, the other side {version}"
        )


def content_bytes(message: Message) -> int:
    """Return the payload of a message in bytes: arrays, texts and numbers, without Flower's envelope."""
    if message.has_error():
        return 0
    # Not by `array_records`: once asked for it, a content refers to itself, and holds its arrays until garbage goes.
    records = list(message.content.values())
    arrays = sum(len(a.data) for r in records if isinstance(r, ArrayRecord) for a in r.values())
    scalars = [pair for r in records if isinstance(r, ConfigRecord) for pair in r.items()]
    return arrays + sum(len(k) + len(v if isinstance(v, bytes | str) else str(v)) for k, v in scalars)


def new_record(scalars: dict[str, Scalar], vectors: dict[str, NDArray[Any]] | None = None) -> RecordDict:
    """Return message content in this protocol's version."""
    record = RecordDict({_CONFIG: ConfigRecord({"version": PROTOCOL_VERSION, **scalars})})
    if vectors:
        record[_ARRAYS] = arrays = ArrayRecord()
        for name, vector in vectors.items():
            arrays[name] = to_array(vector)
    return record


def read_scalar(record: RecordDict, key: str, kind: type[ScalarT], versioned: bool = False) -> ScalarT:
    """Return a field of exactly the type `kind`; raises WireError, also for another protocol version."""
    if not versioned:
        check_version(record)
    config = record.get(_CONFIG)
    value = config.get(key) if isinstance(config, ConfigRecord) else None
    if type(value) is not kind:
        raise WireError("AGFL-WIRE-040", f"{key}: must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _expect(record: RecordDict, key: str, expected: int | str) -> None:
    got = read_scalar(record, key, str) if isinstance(expected, str) else read_scalar(record, key, int)
    if got != expected:
        raise WireError("AGFL-WIRE-041", f"{key}: must be {expected!r} as in the request, got {got!r}")


def read_bounded(record: RecordDict, key: str, low: int, high: int) -> int:
    """Return an integer field in [low, high]; raises WireError."""
    value = read_scalar(record, key, int)
    if not low <= value <= high:
        raise WireError("AGFL-WIRE-042", f"{key}: must be in [{low}, {high}], got {value}")
    return value


def read_vector(record: RecordDict, key: str, dtype: DTypeLike, size: int | None = None) -> NDArray[Any]:
    """Return a one-dimensional array, without trusting its header and without a copy; raises WireError."""
    arrays = record.get(_ARRAYS)
    array = arrays.get(key) if isinstance(arrays, ArrayRecord) else None
    kind = np.dtype(dtype)
    if array is None:
        raise WireError("AGFL-WIRE-043", f"{key}: required but missing")
    if array.dtype != kind.name or len(array.shape) != 1 or (size is not None and array.shape != (size,)):
        expected = f"{kind.name} of shape ({'any' if size is None else size},)"
        raise WireError(
            "AGFL-WIRE-044", f"{key}: must be {expected}, got {array.dtype[:80]} of shape {tuple(array.shape)}"
        )
    header = npy_header(kind, array.shape[0])
    if len(array.data) != len(header) + array.shape[0] * kind.itemsize or array.data[: len(header)] != header:
        raise WireError(
            "AGFL-WIRE-045",
            f"{key}: must hold exactly the declared {array.shape[0]} numbers, got {len(array.data)} bytes",
        )
    return np.frombuffer(array.data, kind, offset=len(header))


def _flat(arrays: States) -> dict[str, NDArray[Any]]:
    """Return the arrays of all methods by METHOD/ARRAY."""
    return {f"{method}/{name}": array for method, own in arrays.items() for name, array in own.items()}


def _read_arrays(record: RecordDict) -> States:
    """Return what methods broadcast, of types that a message may have; what each must be the plan says."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    arrays = record.get(_ARRAYS)
    for key, array in arrays.items() if isinstance(arrays, ArrayRecord) else ():
        if key == "model":
            continue
        if _NAME.fullmatch(key) is None:
            raise WireError("AGFL-WIRE-046", f"arrays: names must be METHOD/ARRAY, got {key[:80]!r}")
        if array.dtype not in _DTYPES:
            raise WireError("AGFL-WIRE-047", f"{key}: must be one of {', '.join(_DTYPES)}, got {array.dtype[:80]!r}")
        method, _, name = key.partition("/")
        found.setdefault(method, {})[name] = read_vector(record, key, array.dtype)
    return found
