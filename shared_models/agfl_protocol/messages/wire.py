"""The wire: every message that server and client exchange, with its fields, and nothing else.

What a client sends on its own is a privacy decision, and these are all of them: its NAME and version
(`IdentifyReply`), what its owner says to a plan and whether it wants the trained model (`ProposeReply`), and one vector
of integers a round (`RoundReply`), of training and evaluating as of counting for a tokenizer (`counting.py`); where
sums are secure, that vector is masked, and the messages around it are those of `secure_wire.py`.
Legend: d parameters.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import DTypeLike, NDArray

from agfl_models.errors import WireError
from agfl_protocol.config.run_config import PROTOCOL_VERSION
from agfl_protocol.methods.clipping import MAX_STEP
from agfl_protocol.secagg.context import Broadcast
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.rings import MAX_RINGS
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Vector

IDENTIFY, PROPOSE, MODEL, FINISH = "query.identify", "query.propose", "query.model", "query.finish"
TRAIN, EVALUATE = "train", "evaluate"
_CONFIG, _ARRAYS = "config", "arrays"
_MAX_SOFTWARE = 64

Used: TypeAlias = tuple[int, tuple[str, ...]]  # an exchange, and who was in its sum
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
            raise WireError(f"software: must be at most {_MAX_SOFTWARE} printable characters")
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
            raise WireError(f"answer: must be one of {', '.join(Answer)}, got {text[:80]!r}")
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
    def config_hash(self) -> str: ...
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
    owner approved. evaluate: add the evaluation sums of `model`; train: add the update trained from `model`; full:
    evaluate on all validation examples instead of some drawn afresh, never beside training. model: float32 (d,), or
    (m d,) where m - 1 models follow of which only the loss is asked for (`candidates`).
    rings_by_tier: how many rings an owner of each tier trains and evaluates, never more than it holds; (1,) for a
    model that is not elastic.
    plan: the public quantizer of this round; where it only evaluates, just `max_cohort` counts.
    control: float32 (d,), SCAFFOLD's control variate or, for weights by alignment, the model before; else empty.
    used: where owners keep state (`drift`), the exchanges whose sums the model took in, ascending: only so an owner
    knows whether what it sent last counts. All owners get the same list. Of plain sums it has the names of those who
    were in one; of secure ones an owner goes by what it signed.
    """

    run_id: str
    round: int
    exchange: int
    plan_hash: str
    config_json: str
    config_hash: str
    evaluate: bool
    train: bool
    model: Vector
    plan: QuantizationPlan
    control: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    used: tuple[Used, ...] = ()
    rings_by_tier: tuple[int, ...] = (1,)
    full: bool = False

    @property
    def kind(self) -> str:
        """The message type."""
        return TRAIN if self.train else EVALUATE

    @property
    def max_cohort(self) -> int:
        """The clients for which the fields have room."""
        return self.plan.max_cohort

    @property
    def broadcast_hash(self) -> bytes:
        """SHA-256 of all that this request says and that every client must have received alike."""
        plan = self.plan
        return Broadcast(
            self.plan_hash,
            self.config_json,
            self.train,
            self.evaluate,
            self.full,
            plan.fields_per_lane,
            plan.max_cohort,
            plan.clip_step,
            self.model,
            self.control,
            _used_text(self.used),
            self.rings_by_tier,
        ).hash

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {
            "run_id": self.run_id,
            "round": self.round,
            "exchange": self.exchange,
            "plan_hash": self.plan_hash,
            "config_json": self.config_json,
            "config_hash": self.config_hash,
            "evaluate": self.evaluate,
            "train": self.train,
            "full": self.full,
            "fields_per_lane": self.plan.fields_per_lane,
            "max_cohort": self.plan.max_cohort,
            "clip_step": self.plan.clip_step,
            "used": _used_text(self.used),
        }
        vectors: dict[str, NDArray[Any]] = {
            "model": self.model,
            "control": self.control,
            "rings_by_tier": np.array(self.rings_by_tier, np.uint8),
        }
        return new_record(scalars, vectors)

    @staticmethod
    def from_record(record: RecordDict) -> RoundRequest:
        """Read a request; raises WireError."""
        plan = QuantizationPlan(
            fields_per_lane=read_bounded(record, "fields_per_lane", 1, 4),
            max_cohort=read_bounded(record, "max_cohort", 1, 2**20),
            clip_step=read_bounded(record, "clip_step", 0, MAX_STEP),
        )
        if plan.levels < 2:
            raise WireError(f"max_cohort: must leave levels in {plan.fields_per_lane} fields, got {plan.max_cohort}")
        rings = read_vector(record, "rings_by_tier", np.uint8).tolist()
        if not 1 <= len(rings) <= MAX_RINGS or any(not 1 <= rings[i] <= i + 1 for i in range(len(rings))):
            raise WireError(f"rings_by_tier: must be 1 to {MAX_RINGS} numbers, the i-th in [1, i], got {rings[:80]}")
        train, full = read_scalar(record, "train", bool), read_scalar(record, "full", bool)
        if train and full:
            raise WireError("full: must be false in a request that trains, got true")
        return RoundRequest(
            run_id=read_scalar(record, "run_id", str),
            round=read_bounded(record, "round", 1, 2**31),
            exchange=read_bounded(record, "exchange", 0, 2**31),
            plan_hash=read_scalar(record, "plan_hash", str),
            config_json=read_scalar(record, "config_json", str),
            config_hash=read_scalar(record, "config_hash", str),
            evaluate=read_scalar(record, "evaluate", bool),
            train=train,
            full=full,
            model=read_vector(record, "model", np.float32),
            plan=plan,
            control=read_vector(record, "control", np.float32),
            used=_read_used(record),
            rings_by_tier=tuple(rings),
        )


@dataclass(frozen=True)
class RoundReply:
    """A client's contribution to the sum: lanes, uint64, of the length that the round prescribes."""

    config_hash: str
    round: int
    exchange: int
    lanes: Lanes

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {"config_hash": self.config_hash, "round": self.round, "exchange": self.exchange}
        return new_record(scalars, {"lanes": self.lanes})

    @staticmethod
    def from_record(record: RecordDict, request: SumRequest, num_lanes: int) -> RoundReply:
        """Read a reply to `request`.

        Raises:
            WireError: wrong version, configuration hash, round, exchange, type or length.
        """
        _expect(record, "config_hash", request.config_hash)
        _expect(record, "round", request.round)
        _expect(record, "exchange", request.exchange)
        lanes = read_vector(record, "lanes", np.uint64, num_lanes)
        return RoundReply(request.config_hash, request.round, request.exchange, lanes)


@dataclass(frozen=True)
class ModelRequest:
    """Server to a node whose owner keeps the model: that of the last round, float32 (d,), and what it is."""

    run_id: str
    plan_hash: str
    round: int
    config_json: str
    model: Vector

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {
            "run_id": self.run_id,
            "plan_hash": self.plan_hash,
            "round": self.round,
            "config_json": self.config_json,
        }
        return new_record(scalars, {"model": self.model})

    @staticmethod
    def from_record(record: RecordDict) -> ModelRequest:
        """Read a request; raises WireError."""
        return ModelRequest(
            run_id=read_scalar(record, "run_id", str),
            plan_hash=read_scalar(record, "plan_hash", str),
            round=read_bounded(record, "round", 0, 2**31),
            config_json=read_scalar(record, "config_json", str),
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
        raise WireError(f"version: this side speaks protocol {PROTOCOL_VERSION}, the other side {version}")


def content_bytes(message: Message) -> int:
    """Return the payload of a message in bytes: arrays, texts and numbers, without Flower's envelope."""
    if message.has_error():
        return 0
    arrays = sum(len(a.data) for r in message.content.array_records.values() for a in r.values())
    scalars = [pair for r in message.content.config_records.values() for pair in r.items()]
    return arrays + sum(len(k) + len(v if isinstance(v, bytes | str) else str(v)) for k, v in scalars)


def new_record(scalars: dict[str, Scalar], vectors: dict[str, NDArray[Any]] | None = None) -> RecordDict:
    """Return message content in this protocol's version."""
    record = RecordDict({_CONFIG: ConfigRecord({"version": PROTOCOL_VERSION, **scalars})})
    if vectors:
        record[_ARRAYS] = ArrayRecord({name: Array(vector) for name, vector in vectors.items()})
    return record


def read_scalar(record: RecordDict, key: str, kind: type[ScalarT], versioned: bool = False) -> ScalarT:
    """Return a field of exactly the type `kind`; raises WireError, also for another protocol version."""
    if not versioned:
        check_version(record)
    config = record.get(_CONFIG)
    value = config.get(key) if isinstance(config, ConfigRecord) else None
    if type(value) is not kind:
        raise WireError(f"{key}: must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _expect(record: RecordDict, key: str, expected: int | str) -> None:
    got = read_scalar(record, key, str) if isinstance(expected, str) else read_scalar(record, key, int)
    if got != expected:
        raise WireError(f"{key}: must be {expected!r} as in the request, got {got!r}")


def read_bounded(record: RecordDict, key: str, low: int, high: int) -> int:
    """Return an integer field in [low, high]; raises WireError."""
    value = read_scalar(record, key, int)
    if not low <= value <= high:
        raise WireError(f"{key}: must be in [{low}, {high}], got {value}")
    return value


def read_vector(record: RecordDict, key: str, dtype: DTypeLike, size: int | None = None) -> NDArray[Any]:
    """Return a one-dimensional array, without trusting its header and without a copy; raises WireError."""
    arrays = record.get(_ARRAYS)
    array = arrays.get(key) if isinstance(arrays, ArrayRecord) else None
    kind = np.dtype(dtype)
    if array is None:
        raise WireError(f"{key}: required but missing")
    if array.dtype != kind.name or len(array.shape) != 1 or (size is not None and array.shape != (size,)):
        expected = f"{kind.name} of shape ({'any' if size is None else size},)"
        raise WireError(f"{key}: must be {expected}, got {array.dtype} of shape {tuple(array.shape)}")
    header = _npy_header(kind, array.shape[0])
    if len(array.data) != len(header) + array.shape[0] * kind.itemsize or not array.data.startswith(header):
        raise WireError(f"{key}: must hold exactly the declared {array.shape[0]} numbers, got {len(array.data)} bytes")
    return np.frombuffer(array.data, kind, offset=len(header))


def _used_text(used: Sequence[Used]) -> str:
    """Return the canonical text: lines of an exchange and names; no NAME has a space in it."""
    return "\n".join(" ".join((str(exchange), *names)) for exchange, names in used)


def _read_used(record: RecordDict) -> tuple[Used, ...]:
    text = read_scalar(record, "used", str)
    try:
        lines = [line.split(" ") for line in text.split("\n")] if text else []
        used = tuple((int(exchange), tuple(names)) for exchange, *names in lines)
    except ValueError:
        used = ()
    ascending = all(a < b for (a, _), (b, _) in pairwise(used)) and all(exchange >= 0 for exchange, _ in used[:1])
    if not ascending or _used_text(used) != text:
        raise WireError(f"used: must be lines of an exchange and names, ascending, got {text[:80]!r}")
    return used


def _npy_header(dtype: np.dtype[Any], size: int) -> bytes:
    """Return what NumPy writes before the numbers, the format in which Flower's Array travels."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    )
    return stream.getvalue()
