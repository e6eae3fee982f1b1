"""An array as Flower sends it, a head and its numbers in pieces, made and put together with one copy of the numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import DTypeLike, NDArray

_NUMPY = "numpy.ndarray"  # Flower's name for the form in which `numpy.save` writes


def npy_header(dtype: np.dtype[Any], size: int) -> bytes:
    """Return what NumPy writes before the numbers, the format in which Flower's Array travels."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    )
    return stream.getvalue()


def new_vector(dtype: DTypeLike, size: int) -> NDArray[Any]:
    """Return a vector (size,) of zeros that `to_array` does not copy: before it there is room for what NumPy writes.

    An Array made of it can be sent, but neither pickled nor deep-copied.
    """
    kind = np.dtype(dtype)
    room = len(npy_header(kind, size))
    return np.zeros(room + size * kind.itemsize, np.uint8)[room:].view(kind)


def to_array(vector: NDArray[Any]) -> Array:
    """Return a vector (n,) as Flower's Array, with the bytes that Flower would make of it.

    One of `new_vector` is given up by the caller: the Array is made of it.
    """
    header, whole = npy_header(vector.dtype, vector.size), vector.base
    if isinstance(whole, np.ndarray) and _follows(vector, len(header), whole):
        whole[: len(header)] = np.frombuffer(header, np.uint8)
        array = Array(str(vector.dtype), vector.shape, _NUMPY, b"")
        # It is cut into pieces by a memoryview of it; nobody who has the Array changes it.
        array.data = whole.data.toreadonly()  # type: ignore[assignment]
        return array
    data = b"".join((header, np.ascontiguousarray(vector).data))
    return Array(str(vector.dtype), vector.shape, _NUMPY, data)


def _follows(vector: NDArray[Any], room: int, whole: NDArray[Any]) -> bool:
    """Whether `whole` is `room` bytes and then the vector, as `new_vector` makes them."""
    is_all = whole.dtype == np.uint8 and whole.size == room + vector.nbytes
    return is_all and vector.flags.c_contiguous and vector.ctypes.data == whole.ctypes.data + room


def joined(content: bytes, read: Callable[[str], bytes]) -> Array:
    """Return the Array that an object of Flower's form describes; `read` gives its pieces, each an object, by id.

    Raises:
        ValueError, TypeError, KeyError, IndexError: the object or a piece has another form.
    """
    head, _, body = content.partition(b"\x00")
    pieces, facts = head.decode("ascii").split(" ")[1].split(","), json.loads(body)
    order = [pieces[i] for i in facts["arraychunk_ids"]]
    if set(order) != set(pieces):
        raise ValueError("an array must be made of all its pieces")
    data = io.BytesIO()  # grows in place, and gives its bytes without a copy
    for piece in order:
        kind, numbers = _cut(read(piece))
        if kind != b"ArrayChunk":
            raise ValueError("an array must be made of pieces of numbers")
        data.write(numbers)
    return Array(facts["dtype"], tuple(facts["shape"]), facts["stype"], data.getvalue())


def _cut(content: bytes) -> tuple[bytes, memoryview]:
    """Return type and body of an object."""
    end = content.index(b"\x00")
    return content[:end].split(b" ")[0], memoryview(content)[end + 1 :]
