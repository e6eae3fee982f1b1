"""Arrow's own format, as a file and as a stream: the same messages, with or without an index at the end.

What a batch is unpacked to is written in it, and read before anything is unpacked. Source: Arrow columnar format 1.5,
"Serialization and Interprocess Communication", `Message.fbs`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agfl_models.reading.kinds import ARROW
from agfl_models.reading.memory import Budget

if TYPE_CHECKING:
    import pyarrow

_PADDING = 64  # bytes
_STREAM_IN_FILE = 8  # where it begins: after the magic and its padding
_END = b"\xff\xff\xff\xff\0\0\0\0"
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2


@dataclass(frozen=True)
class IpcTable:
    """An Arrow file or stream; `open` checks it whole, without reading what is in it."""

    source: pyarrow.NativeFile
    start: int
    schema: pyarrow.Schema

    @classmethod
    def open(cls, source: pyarrow.NativeFile, budget: Budget) -> IpcTable:
        """Return the table; raise ValueError or an error of pyarrow's where it is broken or cut."""
        import pyarrow

        source.seek(0)
        is_file = source.read(len(ARROW)) == ARROW
        start = _STREAM_IN_FILE if is_file else 0
        count = _checked_messages(source, start, budget)
        if is_file:
            _check_end(source)
            source.seek(0)
            indexed = pyarrow.ipc.open_file(source).num_record_batches
            if indexed != count:
                raise ValueError(f"its index has {indexed} batches and it holds {count}")
        elif source.tell() != source.size() or _tail(source, len(_END)) != _END:
            raise ValueError("its end is not that of a stream")
        source.seek(start)
        return cls(source, start, pyarrow.ipc.open_stream(source).schema)

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """Yield batches with at least these columns, which need not be whole in memory."""
        import pyarrow

        indices = [self.schema.get_field_index(name) for name in columns]
        self.source.seek(self.start)
        options = pyarrow.ipc.IpcReadOptions(included_fields=indices or None, use_threads=False)
        yield from pyarrow.ipc.open_stream(self.source, options=options)


def _check_end(source: pyarrow.NativeFile) -> None:
    """Raise ValueError unless the index follows the messages: after those of a second file, it would not be theirs."""
    end, tail = source.tell(), _tail(source, 4 + len(ARROW))
    (length,) = struct.unpack("<I", tail[:4])
    if not 0 <= source.size() - end - length - len(tail) < _PADDING:
        raise ValueError("its index does not follow what it holds")


def _tail(source: pyarrow.NativeFile, length: int) -> bytes:
    source.seek(max(0, source.size() - length))
    return bytes(source.read(length))


def _checked_messages(source: pyarrow.NativeFile, start: int, budget: Budget) -> int:
    """Return how many batches there are; take what the largest one and the dictionaries are unpacked to."""
    import pyarrow

    source.seek(start)
    largest = count = 0
    for message in pyarrow.ipc.MessageReader.open_stream(source):
        unpacked = _unpacked_size(message.metadata.to_pybytes(), message.body)
        if message.type == "dictionary":
            budget.take(unpacked)
        elif message.type == "record batch":
            count += 1
            if unpacked > largest:
                budget.take(unpacked - largest)
                largest = unpacked
    return count


def _unpacked_size(metadata: bytes, body: pyarrow.Buffer | None) -> int:
    """Return the bytes that a message's buffers say they are unpacked to; 0 where they are not packed."""
    message = _Table.root(metadata)
    kind, header = message.byte(1), message.table(2)
    if kind == _DICTIONARY_BATCH and header is not None:
        header = header.table(1)
    elif kind != _RECORD_BATCH:
        return 0
    if header is None or header.table(3) is None or body is None:
        return 0
    total = 0
    for offset, length in header.pairs(2):
        if length >= 8:
            total += max(0, struct.unpack("<q", body.slice(offset, 8).to_pybytes())[0])
    return total


@dataclass(frozen=True)
class _Table:
    """A table of FlatBuffers, whose fields are found by their number; struct.error where it points outside."""

    data: bytes
    place: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, *struct.unpack_from("<I", data, 0))

    def _field(self, number: int) -> int | None:
        base = self.place - struct.unpack_from("<i", self.data, self.place)[0]
        slot = 4 + 2 * number
        if base < 0 or slot >= struct.unpack_from("<H", self.data, base)[0]:
            return None
        offset: int = struct.unpack_from("<H", self.data, base + slot)[0]
        return self.place + offset if offset else None

    def byte(self, number: int) -> int:
        place = self._field(number)
        return 0 if place is None else self.data[place]

    def table(self, number: int) -> _Table | None:
        place = self._field(number)
        return None if place is None else _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def pairs(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield the pairs of int64 in a vector of such structures."""
        place = self._field(number)
        if place is not None:
            start = place + struct.unpack_from("<I", self.data, place)[0]
            (length,) = struct.unpack_from("<I", self.data, start)
            yield from struct.iter_unpack("<qq", self.data[start + 4 : start + 4 + 16 * length])
