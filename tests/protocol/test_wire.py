"""Every message survives its bytes; whatever is wrong with a message is refused by the name of the field."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_models.errors import WireError
from agfl_protocol import wire
from agfl_protocol.run_config import PROTOCOL_VERSION
from agfl_protocol.transforms.quantization import QuantizationPlan

REQUEST = wire.RoundRequest(
    run_id="0123abcd",
    round=3,
    attempt=1,
    config_json='{"num_rounds": 3}',
    config_hash="f" * 64,
    evaluate=True,
    train=False,
    model=np.array([0.5, -1.25, 3e-8], np.float32),
    plan=QuantizationPlan(3, 24, 46),
    control=np.array([-0.0, 2.5, 1e-30], np.float32),
    counted={"alice": (2, 0), "bob-1.x": (1, 2**31 - 1)},
)
REPLY = wire.RoundReply("f" * 64, 3, 1, np.array([1, 2**64 - 1, 7], np.uint64))
FINISH = wire.FinishRequest("0123abcd", 24)
IDENTITY = wire.IdentifyReply("alice")
MISSING = object()


def read_request(record: RecordDict) -> object:
    return wire.RoundRequest.from_record(record)


def read_reply(record: RecordDict) -> object:
    return wire.RoundReply.from_record(record, REQUEST, 3)


def with_scalar(record: RecordDict, key: str, value: object) -> RecordDict:
    scalars = dict(record.config_records["config"])
    if value is MISSING:
        del scalars[key]
    else:
        scalars[key] = value  # type: ignore[assignment]
    return RecordDict({**record, "config": ConfigRecord(scalars)})


def with_array(record: RecordDict, key: str, array: Array | None) -> RecordDict:
    arrays = {name: value for name, value in record.array_records["arrays"].items() if name != key}
    return RecordDict({**record, "arrays": ArrayRecord({**arrays, **({key: array} if array else {})})})


def npy(array: NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def assert_equal(left: object, right: object) -> None:
    assert type(left) is type(right)
    for field in fields(left):  # type: ignore[arg-type]
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        elif isinstance(a, QuantizationPlan):
            assert_equal(a, b)
        else:
            assert (type(a), a) == (type(b), b), field.name


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (REQUEST, read_request),
        (replace(REQUEST, evaluate=False, train=True, attempt=0), read_request),
        (replace(REQUEST, model=np.zeros(0, np.float32)), read_request),
        (replace(REQUEST, control=np.zeros(0, np.float32), counted={}), read_request),
        (REPLY, read_reply),
        (FINISH, wire.FinishRequest.from_record),
        (IDENTITY, wire.IdentifyReply.from_record),
    ],
)
def test_message_survives_its_bytes(
    through_bytes: Callable[[RecordDict], RecordDict],
    message: wire.RoundRequest | wire.RoundReply | wire.FinishRequest | wire.IdentifyReply,
    read: Callable[[RecordDict], object],
) -> None:
    assert_equal(message, read(through_bytes(message.to_record())))


def test_messages_without_content_survive_their_bytes(through_bytes: Callable[[RecordDict], RecordDict]) -> None:
    for record in (wire.IdentifyRequest().to_record(), wire.acknowledgment()):
        arrived = through_bytes(record)
        wire.check_version(arrived)
        assert dict(arrived.config_records["config"]) == {"version": PROTOCOL_VERSION}
        assert not arrived.array_records


def test_a_client_sends_nothing_but_its_name_and_its_vector() -> None:
    """The schema, pinned: a new field that a client sends is a privacy decision."""
    assert set(IDENTITY.to_record().config_records["config"]) == {"version", "name"}
    assert set(REPLY.to_record().config_records["config"]) == {"version", "config_hash", "round", "attempt"}
    assert set(REPLY.to_record().array_records["arrays"]) == {"lanes"}
    assert not IDENTITY.to_record().array_records


WRONG_TYPES: dict[str, tuple[object, ...]] = {
    "str": (MISSING, 1, True, 1.5, b"x", ["x"]),
    "int": (MISSING, "1", True, 1.5, b"1", [1]),
    "bool": (MISSING, 1, 0, "true", 1.5, [True]),
}
REQUEST_FIELDS = {
    "str": ("run_id", "config_json", "config_hash", "counted"),
    "int": ("version", "round", "attempt", "fields_per_lane", "max_cohort", "clip_step"),
    "bool": ("evaluate", "train"),
}


@pytest.mark.parametrize(
    ("record", "read", "key", "kind"),
    [
        *((REQUEST.to_record(), read_request, key, kind) for kind, keys in REQUEST_FIELDS.items() for key in keys),
        (REPLY.to_record(), read_reply, "config_hash", "str"),
        *((REPLY.to_record(), read_reply, key, "int") for key in ("version", "round", "attempt")),
        (FINISH.to_record(), wire.FinishRequest.from_record, "run_id", "str"),
        *((FINISH.to_record(), wire.FinishRequest.from_record, key, "int") for key in ("version", "rounds")),
        (IDENTITY.to_record(), wire.IdentifyReply.from_record, "name", "str"),
        (IDENTITY.to_record(), wire.IdentifyReply.from_record, "version", "int"),
    ],
)
def test_scalar_that_is_missing_or_of_another_type_is_named(
    record: RecordDict, read: Callable[[RecordDict], object], key: str, kind: str
) -> None:
    for value in WRONG_TYPES[kind]:
        with pytest.raises(WireError, match=rf"^{key}: must be a {kind}, got "):
            read(with_scalar(record, key, value))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("round", 0, r"must be in \[1, 2147483648\], got 0"),
        ("round", 2**31 + 1, r"must be in \[1, 2147483648\], got 2147483649"),
        ("attempt", -1, r"must be in \[0, "),
        ("fields_per_lane", 0, r"must be in \[1, 4\], got 0"),
        ("fields_per_lane", 5, r"must be in \[1, 4\], got 5"),
        ("max_cohort", 0, r"must be in \[1, 1048576\], got 0"),
        ("max_cohort", 2**20 + 1, r"must be in \[1, 1048576\], got 1048577"),
        ("clip_step", -1, r"must be in \[0, 80\], got -1"),
        ("clip_step", 81, r"must be in \[0, 80\], got 81"),
    ],
)
def test_number_out_of_range_is_named(key: str, value: int, rule: str) -> None:
    with pytest.raises(WireError, match=f"^{key}: {rule}"):
        read_request(with_scalar(REQUEST.to_record(), key, value))


def test_cohort_too_large_for_its_fields_is_refused() -> None:
    record = with_scalar(with_scalar(REQUEST.to_record(), "max_cohort", 2**17), "fields_per_lane", 4)
    with pytest.raises(WireError, match="max_cohort"):
        read_request(record)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("config_hash", "0" * 64, f"must be '{'f' * 64}' as in the request, got '{'0' * 64}'"),
        ("round", 2, "must be 3 as in the request, got 2"),
        ("attempt", 0, "must be 1 as in the request, got 0"),
    ],
)
def test_reply_to_another_request_is_refused(key: str, value: object, rule: str) -> None:
    with pytest.raises(WireError, match=f"^{key}: {rule}"):
        read_reply(with_scalar(REPLY.to_record(), key, value))


@pytest.mark.parametrize("text", ["alice", "alice 1", "alice 1 2 3", "alice one 2", "alice 1 2\n", " ", "alice  1 2"])
def test_who_was_counted_is_a_line_each_or_refused(text: str) -> None:
    with pytest.raises(WireError, match=r"^counted: must be lines of NAME, round and attempt, got '"):
        read_request(with_scalar(REQUEST.to_record(), "counted", text))


def test_other_version_is_named() -> None:
    for record, read in ((REQUEST.to_record(), read_request), (REPLY.to_record(), read_reply)):
        with pytest.raises(WireError, match=r"^version: this side speaks protocol 1, the other side 2"):
            read(with_scalar(record, "version", 2))
    with pytest.raises(WireError, match=r"^version: must be a int, got NoneType"):
        wire.check_version(RecordDict())


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def lying_arrays(kind: str, bomb: Path) -> dict[str, Array | None]:
    """Arrays that say they are three numbers of `kind`, and are not."""
    good = np.arange(3).astype(kind)
    other = "float64" if kind != "float64" else "float32"
    exploding = npy(np.array([Bomb(bomb)] * 3, object))
    return {
        "missing": None,
        "longer than its data": Array(kind, (4,), "numpy.ndarray", npy(good)),
        "a billion of nothing": Array(kind, (2**30,), "numpy.ndarray", npy(good)),
        "header lies too": Array(kind, (2**30,), "numpy.ndarray", npy(good).replace(b"(3,)", b"(1073741824,)")),
        "shorter than its data": Array(kind, (2,), "numpy.ndarray", npy(good)),
        "negative": Array(kind, (-1,), "numpy.ndarray", npy(good)),
        "bytes after the end": Array(kind, (3,), "numpy.ndarray", npy(good) + b"x"),
        "cut off": Array(kind, (3,), "numpy.ndarray", npy(good)[:-1]),
        "no data": Array(kind, (3,), "numpy.ndarray", b""),
        "other type": Array(good.astype(other)),
        "other type inside": Array(kind, (3,), "numpy.ndarray", npy(good.astype(other))),
        "other byte order": Array(kind, (3,), "numpy.ndarray", npy(good.astype(good.dtype.newbyteorder(">")))),
        "two dimensions": Array(good[None]),
        "two dimensions inside": Array(kind, (3,), "numpy.ndarray", npy(good[None])),
        "no dimension": Array(np.array(1).astype(kind)),
        "pickled objects": Array("object", (3,), "numpy.ndarray", exploding),
        "pickled objects inside": Array(kind, (3,), "numpy.ndarray", exploding),
        "a bare pickle": Array(kind, (3,), "numpy.ndarray", pickle.dumps(Bomb(bomb))),
    }


@pytest.mark.parametrize("lie", list(lying_arrays("float32", Path())))
@pytest.mark.parametrize(
    ("record", "read", "key", "kind"),
    [
        (REQUEST.to_record(), read_request, "model", "float32"),
        (REQUEST.to_record(), read_request, "control", "float32"),
        (REPLY.to_record(), read_reply, "lanes", "uint64"),
    ],
)
def test_lying_array_is_named_and_never_unpickled(
    tmp_path: Path, record: RecordDict, read: Callable[[RecordDict], object], key: str, kind: str, lie: str
) -> None:
    bomb = tmp_path / "exploded"
    with pytest.raises(WireError, match=f"^{key}: (must (be|hold exactly)|required but missing)"):
        read(with_array(record, key, lying_arrays(kind, bomb)[lie]))
    assert not bomb.exists()


@given(st.binary(max_size=300))
def test_any_bytes_are_the_vector_or_refused(data: bytes) -> None:
    good = npy(np.array([1, 2, 3], np.uint64))
    record = with_array(REPLY.to_record(), "lanes", Array("uint64", (3,), "numpy.ndarray", data))
    if data[:-24] != good[:-24]:
        with pytest.raises(WireError, match=r"^lanes: must hold exactly the declared 3 numbers"):
            read_reply(record)


@pytest.mark.parametrize("size", [0, 2, 4])
def test_vector_of_another_length_is_refused(size: int) -> None:
    record = with_array(REPLY.to_record(), "lanes", Array(np.zeros(size, np.uint64)))
    with pytest.raises(WireError, match=rf"^lanes: must be uint64 of shape \(3,\), got uint64 of shape \({size},\)"):
        read_reply(record)
