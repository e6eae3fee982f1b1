"""Counts of pairs: every pair that holds a new token has one cell, sums are exact, and no message is taken on trust."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.test_wire import WRONG_TYPES, assert_equal, lying_arrays, with_array, with_scalar

from agfl_models.errors import WireError
from agfl_models.tokenizers.tokenizer import MAX_VOCAB_SIZE, Pair
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT, CountCodec, CountRequest
from agfl_protocol.secagg.lanes import Lanes

MERGES = ((97, 98), (259, 32), (1, 2), (260, 261))
REQUEST = CountRequest("0123abcd", 3, 1, "e" * 64, '{"num_rounds": 3}', MERGES, 2, 24)
FIRST = replace(REQUEST, round=1, merges=(), num_new=0)
SHAPES = st.integers(0, 12).flatmap(lambda m: st.tuples(st.just(m), st.integers(min(m, 1), m)))
Read = Callable[[RecordDict], object]


@pytest.mark.parametrize("request_", [REQUEST, FIRST, replace(REQUEST, num_new=4), replace(REQUEST, exchange=0)])
def test_a_request_survives_its_bytes(
    through_bytes: Callable[[RecordDict], RecordDict], request_: CountRequest
) -> None:
    assert_equal(CountRequest.from_record(through_bytes(request_.to_record())), request_)


def test_a_request_is_a_query_and_its_answer_is_that_to_a_round() -> None:
    assert REQUEST.kind == COUNT == "query.count"
    reply = wire.RoundReply(REQUEST.client_plan_hash, 3, 1, np.zeros(3, np.uint64)).to_record()
    assert wire.RoundReply.from_record(reply, REQUEST, 3).lanes.size == 3
    with pytest.raises(WireError, match=r"^round: .*got 3.*AGFL-WIRE-041"):
        wire.RoundReply.from_record(reply, replace(REQUEST, round=4), 3)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        *((key, "str") for key in ("run_id", "plan_hash", "client_plan")),
        *((key, "int") for key in ("version", "round", "exchange", "num_new", "max_cohort")),
    ],
)
def test_scalar_that_is_missing_or_of_another_type_is_named(key: str, kind: str) -> None:
    for value in WRONG_TYPES[kind]:
        with pytest.raises(WireError, match=rf"^{key}: must be a {kind}, got "):
            CountRequest.from_record(with_scalar(REQUEST.to_record(), key, value))


@pytest.mark.parametrize("lie", list(lying_arrays("uint32", Path())))
def test_lying_array_is_named_and_never_unpickled(tmp_path: Path, lie: str) -> None:
    array = lying_arrays("uint32", tmp_path / "exploded")[lie]
    with pytest.raises(WireError, match=r"^merges: (must (be|hold exactly)|required but missing)"):
        CountRequest.from_record(with_array(REQUEST.to_record(), "merges", array))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("round", 0, r"must be in \[1, 2147483648\], got 0"),
        ("exchange", -1, r"must be in \[0, 2147483648\], got -1"),
        ("num_new", 0, r"must be in \[1, 4\], got 0"),
        ("num_new", 5, r"must be in \[1, 4\], got 5"),
        ("max_cohort", 0, r"must be in \[1, 1048576\], got 0"),
        ("max_cohort", 2**20 + 1, r"must be in \[1, 1048576\], got 1048577"),
    ],
)
def test_number_out_of_range_is_named(key: str, value: int, rule: str) -> None:
    with pytest.raises(WireError, match=f"^{key}: {rule} .AGFL-WIRE-042"):
        CountRequest.from_record(with_scalar(REQUEST.to_record(), key, value))


def test_attack_a_request_for_too_many_cells_is_refused_before_anything_is_made() -> None:
    """At most 64 new tokens, with whatever stands beside them: 67 MB for the largest of vocabularies."""
    many = np.zeros(2 * 100, np.uint32)
    record = with_array(REQUEST.to_record(), "merges", Array(many))
    with pytest.raises(WireError, match=r"^num_new: .*got 65.*AGFL-WIRE-042"):
        CountRequest.from_record(with_scalar(record, "num_new", 65))
    assert 8 * CountCodec(MAX_VOCAB_SIZE - 259, 64, 1).num_lanes < 68e6
    with pytest.raises(WireError, match=r"^num_new: .*got 1 .AGFL-WIRE-042"):
        CountRequest.from_record(with_scalar(FIRST.to_record(), "num_new", 1))


@pytest.mark.parametrize("size", [1, 2 * (MAX_VOCAB_SIZE - 259) + 2, 10**6])
def test_merges_that_no_vocabulary_has_room_for_are_refused(size: int) -> None:
    record = with_array(REQUEST.to_record(), "merges", Array(np.zeros(size, np.uint32)))
    with pytest.raises(WireError, match=rf"^merges: .*got {size} ids.*AGFL-WIRE-023"):
        CountRequest.from_record(record)


FIELDS = ["version", "run_id", "round", "exchange", "client_plan", "num_new", "max_cohort"]
VALUES = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.text(max_size=50),
    st.binary(max_size=50),
    st.booleans(),
    st.floats(),
    st.lists(st.integers(0, 9), max_size=3),
)


@pytest.mark.parametrize("key", FIELDS)
@given(value=VALUES)
def test_attack_any_value_in_any_field_is_read_or_refused(key: str, value: object) -> None:
    with suppress(WireError):
        CountRequest.from_record(with_scalar(REQUEST.to_record(), key, value))


def ids_of(num_merges: int) -> list[int]:
    return [*range(256), *range(259, 259 + num_merges)]


def pairs_of(num_merges: int, num_new: int) -> list[Pair]:
    """The pairs in the order of SPEC.md, written out: of bytes, or those that hold a new token."""
    ids = ids_of(num_merges)
    old, new = ids[: len(ids) - num_new], ids[len(ids) - num_new :]
    if not new:
        return [(u, v) for u in ids for v in ids]
    return [(u, v) for v in new for u in ids] + [(u, v) for u in new for v in old]


@given(SHAPES)
def test_every_pair_has_the_cell_that_the_specification_says(shape: tuple[int, int]) -> None:
    codec = CountCodec(*shape, max_cohort=3)
    pairs = pairs_of(*shape)
    assert len(set(pairs)) == len(pairs) == codec.num_lanes - 1
    lanes = codec.encode({pair: number for number, pair in enumerate(pairs, start=1)})
    assert lanes.dtype == np.uint64
    assert lanes.tolist() == [1, *range(1, len(pairs) + 1)]
    assert codec.decode(lanes) == {pair: number for number, pair in enumerate(pairs, start=1)}


@given(st.data(), SHAPES)
def test_the_sum_of_lanes_is_the_sum_of_counts(data: st.DataObject, shape: tuple[int, int]) -> None:
    counts = st.dictionaries(st.sampled_from(pairs_of(*shape)), st.integers(1, 2**40), max_size=20)
    owners = data.draw(st.lists(counts, min_size=1, max_size=4))
    codec = CountCodec(*shape, max_cohort=len(owners))
    total: Lanes = np.sum([codec.encode(owner) for owner in owners], axis=0, dtype=np.uint64)
    expected: Counter[Pair] = Counter()
    for owner in owners:
        expected.update(owner)
    assert codec.decode(total) == expected
    assert total[0] == len(owners)


def test_a_count_that_could_make_the_sum_overflow_is_refused_on_both_sides() -> None:
    codec = CountCodec(0, 0, max_cohort=2)
    codec.encode({(1, 2): 2**62 - 1})
    with pytest.raises(WireError, match=r"^lanes: every count must be below 4611686018427387904, got 461168601842738"):
        codec.encode({(1, 2): 2**62})
    lanes = codec.encode({})
    for count in (0, 2, 2**63):
        lanes[0] = count
        with pytest.raises(WireError, match=rf"^count: .*got {count}.*AGFL-WIRE-024"):
            codec.check(lanes)


CHANGES: list[dict[str, Any]] = [
    {"client_plan": "{}"},
    {"num_new": 1},
    {"max_cohort": 25},
    {"merges": MERGES[:3]},
    {"merges": (*MERGES[:3], (261, 260))},
    {"merges": (), "num_new": 0},
]


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_a_request_says_is_in_its_hash(change: dict[str, Any]) -> None:
    other = CountRequest(**{**vars(REQUEST), **change})
    assert other.broadcast_hash != REQUEST.broadcast_hash
