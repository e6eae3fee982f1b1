"""Objects come and go past Flower's own handlers, which hold each several times, and long after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agfl_server.transport.gate import CONNECTION, DOWNLOAD, KEY_ID, UPLOAD
from agfl_server.transport.objects.sent_objects import SentObjects
from agfl_server.transport.objects.spool import Place

_PIECE_BYTES = 2**18

ObjectRequest: TypeAlias = PullObjectRequest | PushObjectRequest
RequestT = TypeVar("RequestT", PullObjectRequest, PushObjectRequest)


class ObjectCalls:
    """ASGI layer that takes objects from nodes and gives them theirs; all else is Flower's to answer.

    refusal: why the node that signed, by its key's id, may not make a call, as a status of HTTP; 0 where it may.
    store: of run, session, object's id and content, whether it is taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        objects: SentObjects,
        refusal: Callable[[str, ObjectRequest], int],
        store: Callable[[int, str, str, bytes], bool],
    ) -> None:
        self._app, self._objects, self._refusal, self._store = app, objects, refusal, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on; also what must be refused."""
        if scope["path"] not in (DOWNLOAD, UPLOAD):
            await self._app(scope, receive, send)
            return
        message = await receive()  # all of it: the gate has read it
        if scope["path"] == UPLOAD:
            await self._take(scope[KEY_ID], message.get("body", b""), send)
        elif not await self._give(scope, message.get("body", b""), send):
            await self._app(scope, _again(message, receive), send)

    async def _take(self, key: str, body: bytes, send: Send) -> None:
        request = _parsed(PushObjectRequest, body)
        status = 400
        if request is not None:
            status = await asyncio.to_thread(self._refusal, key, request)
        if request is None or status:  # not Flower's to refuse: it has a body several times, and keeps it for a while
            await _begin(status, 0, send)
            await send({"type": "http.response.body"})
            return
        object_ids = request.run_id, request.session_id, request.object_id
        content = request.object_content
        del request, body
        stored = await asyncio.to_thread(self._store, *object_ids, content)
        await _answer(PushObjectResponse(stored=stored).SerializeToString(), send)

    async def _give(self, scope: Scope, body: bytes, send: Send) -> bool:
        """Give an object, a large one piece by piece; return whether the call is answered."""
        request = _parsed(PullObjectRequest, body)
        if request is None or await asyncio.to_thread(self._refusal, scope[KEY_ID], request) != 0:
            return False
        with self._objects.reading(request.object_id) as place:
            if place is None:
                return await self._give_small(request.object_id, send)
            try:
                await self._send(place, send)
            except OSError as error:  # ends the run; the node sees a connection that is cut
                self._objects.spool.failure = error
                scope[CONNECTION].abort()
        return True

    async def _give_small(self, object_id: str, send: Send) -> bool:
        content = await asyncio.to_thread(self._objects.get, object_id)
        if not content:
            return False
        answer = PullObjectResponse(object_found=True, object_available=True, object_content=content)
        await _answer(answer.SerializeToString(), send)
        return True

    async def _send(self, place: Place, send: Send) -> None:
        head = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
        head += _varint(PullObjectResponse.OBJECT_CONTENT_FIELD_NUMBER << 3 | 2) + _varint(place.size)
        await _begin(200, len(head) + place.size, send)
        await send({"type": "http.response.body", "body": head, "more_body": True})
        for at in range(0, place.size, _PIECE_BYTES):
            size = min(_PIECE_BYTES, place.size - at)
            piece = await asyncio.to_thread(self._objects.spool.read, Place(place.start + at, size))
            await send({"type": "http.response.body", "body": piece, "more_body": at + size < place.size})


async def _answer(body: bytes, send: Send) -> None:
    await _begin(200, len(body), send)
    await send({"type": "http.response.body", "body": body})


async def _begin(status: int, length: int, send: Send) -> None:
    headers = [(b"content-type", PROTOBUF_MEDIA_TYPE.encode()), (b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


def _parsed(kind: type[RequestT], body: bytes) -> RequestT | None:
    request = kind()
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
