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
from agfl_protocol.messages import wire
from agfl_protocol.methods.method import States
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.version import PROTOCOL_VERSION

REQUEST = wire.RoundRequest(
    run_id="0123abcd",
    round=3,
    exchange=11,
    plan_hash="e" * 64,
    client_plan='{"num_rounds": 3}',
    evaluate=True,
    train=False,
    model=np.array([0.5, -1.25, 3e-8], np.float32),
    plan=QuantizationPlan(3, 24),
    arrays={
        "scaffold": {"control": np.array([-0.0, 2.5, 1e-30], np.float32), "used": np.array([0, 7, 2**31 - 1])},
        "elastic": {"by_tier": np.array([1, 2, 255], np.uint8)},
    },
)
REPLY = wire.RoundReply(REQUEST.client_plan_hash, 3, 11, np.array([1, 2**64 - 1, 7], np.uint64))
FINISH = wire.FinishRequest("0123abcd")
IDENTITY = wire.IdentifyReply("alice")
PROPOSAL = wire.ProposeRequest('{"run_id":"0123abcd"}')
ANSWER = wire.ProposeReply(wire.Answer.PENDING)
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


def by_name(arrays: States) -> dict[tuple[str, str], tuple[str, bytes]]:
    return {(m, n): (array.dtype.name, array.tobytes()) for m, own in arrays.items() for n, array in own.items()}


def assert_equal(left: object, right: object) -> None:
    assert type(left) is type(right)
    for field in fields(left):  # type: ignore[arg-type]
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        elif isinstance(a, QuantizationPlan):
            assert_equal(a, b)
        elif field.name == "arrays":
            assert by_name(a) == by_name(b)
        else:
            assert (type(a), a) == (type(b), b), field.name


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (REQUEST, read_request),
        (replace(REQUEST, evaluate=False, train=True, exchange=0), read_request),
        (replace(REQUEST, model=np.zeros(0, np.float32)), read_request),
        (replace(REQUEST, arrays={}), read_request),
        (REPLY, read_reply),
        (replace(REQUEST, full=True), read_request),
        (FINISH, wire.FinishRequest.from_record),
        (IDENTITY, wire.IdentifyReply.from_record),
        (PROPOSAL, wire.ProposeRequest.from_record),
        (ANSWER, wire.ProposeReply.from_record),
    ],
)
def test_message_survives_its_bytes(
    through_bytes: Callable[[RecordDict], RecordDict],
    message: wire.RoundRequest
    | wire.RoundReply
    | wire.FinishRequest
    | wire.IdentifyReply
    | wire.ProposeRequest
    | wire.ProposeReply,
    read: Callable[[RecordDict], object],
) -> None:
    assert_equal(message, read(through_bytes(message.to_record())))


def test_messages_without_content_survive_their_bytes(through_bytes: Callable[[RecordDict], RecordDict]) -> None:
    for record in (wire.IdentifyRequest().to_record(), wire.acknowledgment()):
        arrived = through_bytes(record)
        wire.check_version(arrived)
        assert dict(arrived.config_records["config"]) == {"version": PROTOCOL_VERSION}
        assert not arrived.array_records


def test_a_client_sends_nothing_but_its_name_its_owners_answer_and_its_vector() -> None:
    """The schema, pinned: a new field that a client sends is a privacy decision."""
    assert set(IDENTITY.to_record().config_records["config"]) == {"version", "name", "software"}
    assert set(REPLY.to_record().config_records["config"]) == {"version", "client_plan_hash", "round", "exchange"}
    assert set(REPLY.to_record().array_records["arrays"]) == {"lanes"}
    assert set(ANSWER.to_record().config_records["config"]) == {"version", "answer", "keeps_model"}
    assert set(wire.Answer) == {"approved", "pending", "refused"}
    assert not IDENTITY.to_record().array_records
    assert not ANSWER.to_record().array_records


@pytest.mark.parametrize("text", ["x" * 65, "0.1\n", "0.1\x1b[2J"])
def test_a_version_that_could_fill_or_steer_a_screen_is_refused(text: str) -> None:
    with pytest.raises(WireError, match=r"^software: .*AGFL-WIRE-035"):
        wire.IdentifyReply.from_record(with_scalar(IDENTITY.to_record(), "software", text))


@pytest.mark.parametrize("text", ["", "Approved", "yes", "approved ", "pending\n"])
def test_an_answer_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(WireError, match=r"^answer: must be one of approved, pending, refused, got '"):
        wire.ProposeReply.from_record(with_scalar(ANSWER.to_record(), "answer", text))


def test_nobody_is_asked_for_all_its_validation_examples_beside_training() -> None:
    """It would be an exact sum, which is over whole groups alone, in one with a sampled one."""
    record = replace(REQUEST, full=True, train=True).to_record()
    with pytest.raises(WireError, match=r"^full: .*got true.*AGFL-WIRE-038"):
        read_request(record)


WRONG_TYPES: dict[str, tuple[object, ...]] = {
    "str": (MISSING, 1, True, 1.5, b"x", ["x"]),
    "int": (MISSING, "1", True, 1.5, b"1", [1]),
    "bool": (MISSING, 1, 0, "true", 1.5, [True]),
}
REQUEST_FIELDS = {
    "str": ("run_id", "plan_hash", "client_plan"),
    "int": ("version", "round", "exchange", "fields_per_lane", "max_cohort"),
    "bool": ("evaluate", "train", "full"),
}


@pytest.mark.parametrize(
    ("record", "read", "key", "kind"),
    [
        *((REQUEST.to_record(), read_request, key, kind) for kind, keys in REQUEST_FIELDS.items() for key in keys),
        (REPLY.to_record(), read_reply, "client_plan_hash", "str"),
        *((REPLY.to_record(), read_reply, key, "int") for key in ("version", "round", "exchange")),
        (FINISH.to_record(), wire.FinishRequest.from_record, "run_id", "str"),
        (FINISH.to_record(), wire.FinishRequest.from_record, "version", "int"),
        (PROPOSAL.to_record(), wire.ProposeRequest.from_record, "plan_json", "str"),
        (PROPOSAL.to_record(), wire.ProposeRequest.from_record, "version", "int"),
        (ANSWER.to_record(), wire.ProposeReply.from_record, "answer", "str"),
        (ANSWER.to_record(), wire.ProposeReply.from_record, "version", "int"),
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
        ("exchange", -1, r"must be in \[0, "),
        ("fields_per_lane", 0, r"must be in \[1, 4\], got 0"),
        ("fields_per_lane", 5, r"must be in \[1, 4\], got 5"),
        ("max_cohort", 0, r"must be in \[1, 1048576\], got 0"),
        ("max_cohort", 2**20 + 1, r"must be in \[1, 1048576\], got 1048577"),
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
        ("client_plan_hash", "0" * 64, f"must be '{REQUEST.client_plan_hash}' as in the request, got '{'0' * 64}'"),
        ("round", 2, "must be 3 as in the request, got 2"),
        ("exchange", 0, "must be 11 as in the request, got 0"),
    ],
)
def test_reply_to_another_request_is_refused(key: str, value: object, rule: str) -> None:
    with pytest.raises(WireError, match=f"^{key}: {rule}"):
        read_reply(with_scalar(REPLY.to_record(), key, value))


@pytest.mark.parametrize(
    "key",
    ["scaffold", "/", "a/", "/a", "a/b/c", "A/b", "a/B", "a b/c", "a/b\n", "../a", "models", "9/a", "a" * 65 + "/b"],
)
def test_an_array_of_no_method_is_not_read(key: str) -> None:
    with pytest.raises(WireError, match=r"^arrays: names must be METHOD/ARRAY, got '") as caught:
        read_request(with_array(REQUEST.to_record(), key, Array(np.zeros(3, np.float32))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64", "uint64", "bool", "<U1"])
def test_an_array_has_one_of_few_types(dtype: str) -> None:
    with pytest.raises(WireError, match=r"^a/b: must be one of float32, int64, uint8, got '"):
        read_request(with_array(REQUEST.to_record(), "a/b", Array(np.zeros(3, dtype))))


def test_other_version_is_named() -> None:
    for record, read in ((REQUEST.to_record(), read_request), (REPLY.to_record(), read_reply)):
        with pytest.raises(WireError, match=r"^version: this side speaks protocol 3, the other side 1"):
            read(with_scalar(record, "version", 1))
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
        (REQUEST.to_record(), read_request, "scaffold/control", "float32"),
        (REQUEST.to_record(), read_request, "scaffold/used", "int64"),
        (REPLY.to_record(), read_reply, "lanes", "uint64"),
    ],
)
def test_lying_array_is_named_and_never_unpickled(
    tmp_path: Path, record: RecordDict, read: Callable[[RecordDict], object], key: str, kind: str, lie: str
) -> None:
    bomb = tmp_path / "exploded"
    if lie == "missing" and "/" in key:
        pytest.skip("what a method must have broadcast is known from the plan: see test_node")
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
