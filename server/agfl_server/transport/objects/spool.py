"""Objects of messages on their way, on disk: what the server holds does not grow with the model or with the cohort.

They are in one file without a name, which is gone with this process, however that ends.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias

from agfl_models.errors import TransportError

SMALL_BYTES = 2**16  # stays in memory: most messages are keys and signatures


@dataclass(frozen=True)
class Place:
    """Where an object is in the file."""

    start: int
    size: int

    @property
    def room(self) -> int:
        """Its bytes of the file: a power of two, so that whoever sends ever other sizes uses the same rooms again."""
        return 1 << (self.size - 1).bit_length()


Kept: TypeAlias = bytes | Place


@dataclass
class Spool:
    """folder: where the file is, None for the system's own; it should not be one that is in memory.

    failure: what the disk did not take of a node's reply, noted by whoever tried; it ends the run.
    """

    folder: Path | None = None
    failure: OSError | None = None
    _file: IO[bytes] | None = None
    _end: int = 0
    _used: int = 0
    _free: dict[int, list[Place]] = field(default_factory=lambda: defaultdict(list))
    _is_closed: bool = False
    _users: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, content: bytes) -> Kept:
        """Keep an object until it is dropped; raises OSError where the disk does not take it."""
        if len(content) < SMALL_BYTES:
            return content
        place = self.room(len(content))
        try:
            self.write(place, 0, content)
        except OSError:
            self.drop(place)
            raise
        return place

    def room(self, size: int) -> Place:
        """Return room for an object that comes piece by piece, until it is dropped; raises OSError."""
        with self._lock:
            self._refuse_closed()
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  # as long as we live
            place = Place(self._end, size)
            if free := self._free[place.room]:
                place = Place(free.pop().start, size)
            self._end, self._used = max(self._end, place.start + place.room), self._used + 1
        return place

    def write(self, place: Place, at: int, content: bytes | bytearray) -> None:
        """Write a piece of an object, `at` bytes from its start; raises OSError where the disk does not take it."""
        assert at + len(content) <= place.size
        done = 0
        with self._opened() as file:
            while done < len(content):
                done += os.pwrite(file, memoryview(content)[done:], place.start + at + done)

    def read(self, kept: Kept) -> bytes:
        """Return an object that was kept; raises OSError where the disk does not give it back."""
        if isinstance(kept, bytes):
            return kept
        with self._opened() as file:
            content = os.pread(file, kept.size, kept.start)
        if len(content) != kept.size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return content

    def drop(self, kept: Kept) -> None:
        """Give its room to others; once nothing is kept, the disk has all of it back."""
        if isinstance(kept, bytes):
            return
        with self._lock:
            if self._is_closed:
                return
            self._free[kept.room].append(kept)
            self._used -= 1
            if self._used == 0 and self._file is not None:
                self._file.truncate(0)
                self._end = 0
                self._free.clear()

    def failed(self, error: OSError) -> TransportError:
        """Return what ends a run whose disk does not take or give back an object."""
        where = self.folder or "the system's temporary files"
        line = f"spool: {where} must keep messages on their way, and does not: {error.strerror}"
        return TransportError("AGFL-TRANSPORT-009", line)

    def close(self) -> None:
        """Give the disk all of it back; nothing that was kept can be read any more."""
        with self._lock:
            self._is_closed = True
            self._close_unused()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Hold the file open: once it is closed, the system may give its number to another."""
        with self._lock:
            self._refuse_closed()
            assert self._file is not None
            self._users += 1
        try:
            yield self._file.fileno()
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def _close_unused(self) -> None:
        if self._is_closed and not self._users and self._file is not None:
            self._file.close()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def size_of(kept: Kept) -> int:
    """Return the bytes of an object."""
    return len(kept) if isinstance(kept, bytes) else kept.size
