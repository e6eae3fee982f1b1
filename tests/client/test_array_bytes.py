"""Arrays on the wire: Flower's bytes and ids, put together again from pieces that are given up as they are used."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects, no_object_id_recompute
from numpy.typing import NDArray

from agfl_client.transport.pulling import join_arrays
from agfl_client.transport.supernode import PUSHES_AT_ONCE, _push_all
from agfl_protocol.messages import wire
from agfl_protocol.messages.array_bytes import new_vector, to_array

MIB = 2**20
LARGE = np.arange(3 * MIB, dtype=np.float32)  # three pieces


@pytest.mark.parametrize("vector", [np.zeros(0, np.uint32), np.arange(7, dtype=np.uint64), LARGE, LARGE[::2]])
def test_the_bytes_are_those_that_flower_makes(vector: NDArray[Any]) -> None:
    ours, theirs = to_array(vector), Array(vector)
    assert ours == theirs
    assert ours.object_id == theirs.object_id


def test_a_vector_that_was_made_for_it_is_not_copied() -> None:
    vector = new_vector(np.uint64, LARGE.size)
    vector[:] = LARGE
    ours = to_array(vector)
    assert np.shares_memory(np.frombuffer(ours.data, np.uint8), vector)
    assert ours.object_id == Array(LARGE.astype(np.uint64)).object_id
    assert wire.new_record({}, {"x": vector}).array_records["arrays"]["x"].object_id == ours.object_id
    assert not np.frombuffer(ours.data, np.uint8).flags.writeable, "its hash may be known"
    whole = new_vector(np.uint64, 9)
    whole[:] = range(9)
    for part in (whole[1:], whole[::-1]):
        assert not np.shares_memory(np.frombuffer(to_array(part).data, np.uint8), part)
        assert to_array(part) == Array(part)


def objects_of(*vectors: NDArray[Any]) -> dict[str, InflatableObject]:
    record = RecordDict({"arrays": ArrayRecord({str(i): to_array(vector) for i, vector in enumerate(vectors)})})
    with no_object_id_recompute():
        return get_all_nested_objects(record)


def test_pieces_that_arrays_share_are_given_up_with_their_last_place() -> None:
    zeros = np.zeros(6 * MIB, np.float32)  # four equal pieces and a rest
    contents = {name: one.deflate() for name, one in objects_of(zeros, LARGE, zeros[: 5 * MIB]).items()}
    arrays = join_arrays(contents)
    assert {array.object_id for array in arrays.values()} == {
        to_array(vector).object_id for vector in (zeros, LARGE, zeros[: 5 * MIB])
    }
    assert not [content for content in contents.values() if content.startswith(b"ArrayChunk")]


def test_objects_are_pushed_each_once_and_put_into_bytes_only_when_their_turn_comes() -> None:
    objects, pushed, lock = objects_of(LARGE, LARGE[::-1].copy()), dict[str, bytes](), threading.Lock()
    made, most = 0, 0

    class Counting:
        def __init__(self, inner: InflatableObject) -> None:
            self._inner = inner

        def deflate(self) -> bytes:
            nonlocal made, most
            with lock:
                made += 1
                most = max(most, made - len(pushed))
            return self._inner.deflate()

    def push(object_id: str, content: bytes) -> None:
        time.sleep(0.005)
        with lock:
            pushed[object_id] = content

    counting: Any = {name: Counting(one) for name, one in objects.items()}
    _push_all(counting, list(objects), push)
    assert pushed == {name: one.deflate() for name, one in objects.items()}
    assert made == len(objects)
    assert most <= PUSHES_AT_ONCE


def test_a_push_that_fails_ends_the_others() -> None:
    objects, tried = objects_of(*(LARGE + i for i in range(4))), list[str]()

    def push(object_id: str, content: bytes) -> None:
        tried.append(object_id)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        _push_all(objects, list(objects), push)
    assert len(tried) <= PUSHES_AT_ONCE
