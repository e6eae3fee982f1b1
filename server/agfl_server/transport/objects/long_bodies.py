"""Long bodies of requests, on disk while they come: memory holds a piece of each."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Receive

from agfl_server.transport.bodies import Refused, pieces
from agfl_server.transport.objects.spool import Place, Spool

_WRITE_BYTES = 2**18


class LongBodies:
    """Those of all nodes, in one spool; whichever disk call fails is noted there, and ends the run."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @contextmanager
    def room(self, length: int) -> Iterator[Place]:
        """Keep room for a body of `length` bytes within the block."""
        with self._disk():
            place = self._spool.room(length)
        try:
            yield place
        finally:
            self._spool.drop(place)

    async def store(self, receive: Receive, length: int, place: Place) -> bytes:
        """Put a body of `length` bytes to where it has room, and return its SHA-256."""
        digest, waiting, at = hashlib.sha256(), bytearray(), 0
        async for piece in pieces(receive, length):
            digest.update(piece)
            waiting += piece
            if len(waiting) >= _WRITE_BYTES:
                at += await self._write(place, at, waiting)
                waiting = bytearray()
        await self._write(place, at, waiting)
        return digest.digest()

    async def read(self, place: Place) -> bytes:
        """Return a body that is stored."""
        with self._disk():
            return await asyncio.to_thread(self._spool.read, place)

    async def _write(self, place: Place, at: int, piece: bytearray) -> int:
        with self._disk():
            await asyncio.to_thread(self._spool.write, place, at, piece)
        return len(piece)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Note that the disk fails, which ends the run, and let the node ask again until then."""
        try:
            yield
        except OSError as error:
            self._spool.failure = error
            raise Refused(503, "the server's disk takes nothing at the moment") from None
