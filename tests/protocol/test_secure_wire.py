"""Every message of the secure sum survives its bytes; whatever has another type or size is refused by its field."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from tests.secagg_world import exchange_id

from agfl_models.errors import WireError
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.messages import KeyRecord, SealedShares

ID = exchange_id()
RECORDS = tuple(KeyRecord(n, n.encode() * 32, b"m" * 32, b"c" * 32, 7, 9, b"s" * 64) for n in "ab")
DEALT = tuple(SealedShares(bytes([i]) * 81, b"h" * 16, b"k" * 16) for i in range(2))
LANES = np.array([1, 2**64 - 1, 7], np.uint64)
Read = Callable[[RecordDict], object]
CASES: list[tuple[str, object, RecordDict, Read]] = [
    (
        "advertise reply",
        (advertised := messages.AdvertiseReply(ID, RECORDS[0])),
        sw.write_advertise_reply(advertised),
        lambda r: sw.read_advertise_reply(r, ID),
    ),
    (
        "share request",
        (share_request := messages.ShareRequest(ID, RECORDS)),
        sw.write_share_request(share_request),
        sw.read_share_request,
    ),
    (
        "share reply",
        (share_reply := messages.ShareReply(ID, DEALT)),
        sw.write_share_reply(share_reply),
        lambda r: sw.read_share_reply(r, ID, 2),
    ),
    (
        "mask request",
        (mask_request := messages.MaskRequest(ID, ("a", "b", "c"), DEALT)),
        sw.write_mask_request(mask_request),
        sw.read_mask_request,
    ),
    (
        "agree request",
        (agree_request := messages.AgreeRequest(ID, ("a", "b"))),
        sw.write_agree_request(agree_request),
        sw.read_agree_request,
    ),
    (
        "agree reply",
        (agree_reply := messages.AgreeReply(ID, b"s" * 64)),
        sw.write_agree_reply(agree_reply),
        lambda r: sw.read_agree_reply(r, ID),
    ),
    (
        "unmask request",
        (unmask_request := messages.UnmaskRequest(ID, ("a", "b"), (b"s" * 64, b"t" * 64))),
        sw.write_unmask_request(unmask_request),
        sw.read_unmask_request,
    ),
    (
        "unmask reply",
        (unmask_reply := messages.UnmaskReply(ID, b"o" * 32, (b"x" * 32, b"y" * 32))),
        sw.write_unmask_reply(unmask_reply),
        lambda r: sw.read_unmask_reply(r, ID, 2),
    ),
]
FIELDS = [(what, key, record, read) for what, _, record, read in CASES for key in record.config_records["config"]]
VALUES = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.text(max_size=200),
    st.binary(max_size=400),
    st.booleans(),
    st.floats(),
    st.lists(st.integers(0, 9), max_size=3),
)


@pytest.mark.parametrize(("what", "message", "record", "read"), CASES, ids=[case[0] for case in CASES])
def test_a_message_survives_its_bytes(
    what: str, message: object, record: RecordDict, read: Read, through_bytes: Callable[[RecordDict], RecordDict]
) -> None:
    assert read(through_bytes(record)) == message


def test_a_masked_vector_survives_its_bytes(through_bytes: Callable[[RecordDict], RecordDict]) -> None:
    record = through_bytes(sw.write_mask_reply(messages.MaskReply(ID, LANES)))
    np.testing.assert_array_equal(sw.read_mask_reply(record, ID, 3).lanes, LANES)
    with pytest.raises(WireError, match=r"^lanes: .*got uint64 of shape \(3,\).*AGFL-WIRE-044"):
        sw.read_mask_reply(record, ID, 4)
    with pytest.raises(
        WireError, match=r"^exchange: must answer run run round 1 exchange 1, got .* exchange 0 .AGFL-WIRE-031"
    ):
        sw.read_mask_reply(record, exchange_id(1), 3)


def changed(record: RecordDict, key: str, value: object) -> RecordDict:
    fields = dict(record.config_records["config"])
    fields[key] = value  # type: ignore[assignment]
    return RecordDict({**record, "config": ConfigRecord(fields)})


def missing(record: RecordDict, key: str) -> RecordDict:
    return RecordDict({"config": ConfigRecord({k: v for k, v in record.config_records["config"].items() if k != key})})


@pytest.mark.parametrize(("what", "key", "record", "read"), FIELDS, ids=[f"{f[0]}: {f[1]}" for f in FIELDS])
def test_no_field_may_be_missing_or_of_another_type(what: str, key: str, record: RecordDict, read: Read) -> None:
    with pytest.raises(WireError, match=rf"^{key}: must be an? "):
        read(missing(record, key))
    with pytest.raises(WireError, match=rf"^{key}: must be an? .*, got float.*AGFL-WIRE-040"):
        read(changed(record, key, 1.0))


@pytest.mark.parametrize(("what", "key", "record", "read"), FIELDS, ids=[f"{f[0]}: {f[1]}" for f in FIELDS])
@given(value=VALUES)
def test_attack_any_value_in_any_field_is_read_or_refused(
    what: str, key: str, record: RecordDict, read: Read, value: object
) -> None:
    """Only the protocol's own errors escape."""
    with suppress(WireError, ProtocolViolation):
        read(changed(record, key, value))


@pytest.mark.parametrize("key", ["records", "dealt", "signatures", "signature", "shares", "self_secret", "record"])
def test_a_block_is_exactly_as_long_as_it_must_be(key: str) -> None:
    for what, _, record, read in CASES:
        block = record.config_records["config"].get(key)
        if block is None:
            continue
        assert isinstance(block, bytes)
        for wrong in (b"", block[:-1], block + b"\0", block * 2):
            with pytest.raises(
                WireError, match=rf"^{key}: must be {len(block)} bytes, got {len(wrong)}.*AGFL-WIRE-032"
            ):
                read(changed(record, key, wrong))
        assert what


def test_a_text_that_no_list_of_names_can_be_is_never_cut_up() -> None:
    record = changed(sw.write_agree_request(messages.AgreeRequest(ID, ("a",))), "names", "a" * 65 * 1024)
    with pytest.raises(
        WireError, match=r"^names: .* got 66560.*AGFL-WIRE-033"
    ):  # its length, not how many names it has
        sw.read_agree_request(record)


@pytest.mark.parametrize("names", ["a" * 65, "\n".join(["a"] * 1025), "a" * 10**6, "\n" * 10**5])
def test_a_list_of_names_is_bounded_before_it_is_cut_up(names: str) -> None:
    record = changed(sw.write_agree_request(messages.AgreeRequest(ID, ("a",))), "names", names)
    with pytest.raises(WireError, match=r"^names: must be at most 1024 of at most 64 characters, got"):
        sw.read_agree_request(record)
