"""What the server sends: a large object is on disk, once for all nodes that it goes to, and is read piece by piece."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agfl_server.transport.gate import DOWNLOAD, KEY_ID
from agfl_server.transport.spool import Kept, Place, Spool

_PIECE_BYTES = 2**18


class SentObjects(InMemoryObjectStore):
    """Flower's object store, whose large objects are in a spool."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool
        self._places: dict[str, Kept] = {}
        self._readers: Counter[Place] = Counter()
        self._left: set[Place] = set()

    def put(self, object_id: str, object_content: bytes) -> None:
        super().put(object_id, object_content)
        with self.lock_store:
            if object_id not in self._places:
                self._places[object_id] = self.spool.keep(object_content)
                self.store[object_id].content = b""

    def get(self, object_id: str) -> bytes | None:
        with self.lock_store:
            kept = self._places.get(object_id)
            return super().get(object_id) if kept is None else self.spool.read(kept)

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            super().delete(object_id)  # which deletes the parts by this method
            if object_id not in self.store and (kept := self._places.pop(object_id, None)) is not None:
                if isinstance(kept, Place) and self._readers[kept]:
                    self._left.add(kept)  # its room may be another owner's next
                else:
                    self.spool.drop(kept)

    @contextmanager
    def reading(self, object_id: str) -> Iterator[Place | None]:
        """Hold a large object where it is, also if it is deleted; None where it is small, or not there."""
        with self.lock_store:
            place = self._places.get(object_id)
            if isinstance(place, Place):
                self._readers[place] += 1
        if not isinstance(place, Place):
            yield None
            return
        try:
            yield place
        finally:
            with self.lock_store:
                self._readers[place] -= 1
                if not self._readers[place]:
                    del self._readers[place]
                    if place in self._left:
                        self._left.remove(place)
                        self.spool.drop(place)


class Downloads:
    """ASGI layer that answers a node's call for a large object; Flower would have all of it in memory for each node.

    may_read: whether who signed, by its key's id, may have what it asks for.
    """

    def __init__(self, app: ASGIApp, objects: SentObjects, may_read: Callable[[str, PullObjectRequest], bool]) -> None:
        self._app, self._objects, self._may_read = app, objects, may_read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what is Flower's to answer."""
        if scope["path"] != DOWNLOAD:
            await self._app(scope, receive, send)
            return
        message = await receive()  # all of it: the gate has read it
        request = _parsed(message.get("body", b""))
        if request is not None and self._may_read(scope[KEY_ID], request):
            with self._objects.reading(request.object_id) as place:
                if place is not None:
                    await self._answer(place, send)
                    return
        await self._app(scope, _again(message, receive), send)

    async def _answer(self, place: Place, send: Send) -> None:
        head = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
        head += _varint(PullObjectResponse.OBJECT_CONTENT_FIELD_NUMBER << 3 | 2) + _varint(place.size)
        length = str(len(head) + place.size).encode()
        headers = [(b"content-type", PROTOBUF_MEDIA_TYPE.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": head, "more_body": True})
        for at in range(0, place.size, _PIECE_BYTES):
            size = min(_PIECE_BYTES, place.size - at)
            piece = await asyncio.to_thread(self._objects.spool.read, Place(place.start + at, size))
            await send({"type": "http.response.body", "body": piece, "more_body": at + size < place.size})


def _parsed(body: bytes) -> PullObjectRequest | None:
    request = PullObjectRequest()
    try:
        request.ParseFromString(body)
    except Exception:  # Flower says so to the node
        return None
    return request


def _again(message: Message, receive: Receive) -> Receive:
    """Return what gives a message that was received once more, and then what comes after it."""
    left = [message]

    async def give() -> Message:
        return left.pop() if left else await receive()

    return give


def _varint(number: int) -> bytes:
    """Return a number as Protocol Buffers have it: seven bits a byte, the lowest first."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
