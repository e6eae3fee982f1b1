"""Large objects that the server sends: read piece by piece, by whoever may, never from room that another has."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from starlette.types import Message, Receive, Scope, Send

from agfl_server.transport.gate import DOWNLOAD, KEY_ID, UPLOAD
from agfl_server.transport.objects.object_calls import ObjectCalls
from agfl_server.transport.objects.sent_objects import SentObjects
from agfl_server.transport.objects.spool import Place, Spool


class Server:
    """A store with one object, and the layer that answers calls for it."""

    def __init__(self, folder: Path, numbers: bytes) -> None:
        self.content = content = b"ArrayChunk  %d\x00" % len(numbers) + numbers
        self.spool = Spool(folder)
        self.objects = SentObjects(self.spool)
        self.id = hashlib.sha256(content).hexdigest()
        self.objects.preregister(1, ObjectTree(object_id=self.id))
        self.objects.put(self.id, content)
        self.passed_on: list[bytes] = []
        self.taken: list[tuple[int, str, str, bytes]] = []
        self.layer = ObjectCalls(self._flower, self.objects, lambda key, _: key == "alice", self._store)

    async def _flower(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.passed_on.append((await receive())["body"])

    def _store(self, *object_: Any) -> bool:
        self.taken.append(object_)
        return True

    def asked(self, name: str, path: str = DOWNLOAD, body: bytes | None = None) -> tuple[dict[bytes, bytes], bytes]:
        """Return headers and body of the answer."""
        headers: dict[bytes, bytes] = {}
        pieces: list[bytes] = []

        async def send(message: Message) -> None:
            headers.update(message.get("headers", ()))
            pieces.append(message.get("body", b""))
            self.on_piece(len(pieces))

        async def receive() -> Message:
            given = PullObjectRequest(object_id=self.id).SerializeToString() if body is None else body
            return {"type": "http.request", "body": given}

        asyncio.run(self.layer({"type": "http", "path": path, KEY_ID: name}, receive, send))
        return headers, b"".join(pieces)

    def on_piece(self, number: int) -> None:
        """What happens meanwhile."""


@pytest.mark.parametrize("size", [2**16, 2**18, 2**18 + 1, 5 * 2**20 + 99])
def test_a_large_object_comes_as_flower_would_send_it(tmp_path: Path, size: int) -> None:
    server = Server(tmp_path, random.Random(size).randbytes(size))
    headers, body = server.asked("alice")
    expected = PullObjectResponse(object_found=True, object_available=True, object_content=server.content)
    assert body == expected.SerializeToString()
    assert headers[b"content-length"] == str(len(body)).encode()
    assert not server.passed_on
    server.spool.close()


def test_what_is_small_or_not_the_callers_is_flowers_to_answer(tmp_path: Path) -> None:
    server = Server(tmp_path, bytes(2**20))
    request = PullObjectRequest(object_id=server.id).SerializeToString()
    for name, path, body in (
        ("bob", DOWNLOAD, request),
        ("alice", DOWNLOAD, b"\xff"),
        ("bob", UPLOAD, PushObjectRequest(object_id="c" * 64).SerializeToString()),
        ("alice", UPLOAD, b"\xff"),
        ("alice", "/v1/fleet/get-run", request),
        ("alice", DOWNLOAD, PullObjectRequest(object_id="b" * 64).SerializeToString()),
    ):
        assert server.asked(name, path, body) == ({}, b"")
        assert server.passed_on.pop() == body
    small = Server(tmp_path, b"key")
    small.asked("alice")
    assert small.passed_on
    for one in (server, small):
        one.spool.close()


def test_an_object_that_comes_is_stored(tmp_path: Path) -> None:
    server = Server(tmp_path, bytes(2**20))
    request = PushObjectRequest(run_id=3, session_id="s", object_id="c" * 64, object_content=b"numbers")
    _, body = server.asked("alice", UPLOAD, request.SerializeToString())
    assert PushObjectResponse.FromString(body).stored
    assert server.taken == [(3, "s", "c" * 64, b"numbers")]
    server.spool.close()


def test_who_reads_slowly_reads_nothing_that_came_into_the_room_later(tmp_path: Path) -> None:
    """A message that is forgotten leaves its room, and the next in there may be another owner's vector."""
    server = Server(tmp_path, b"m" * 2**20)
    vector = b"v" * len(server.content)

    def on_piece(number: int) -> None:
        if number == 3:
            server.objects.delete(server.id)
            kept.append(server.spool.keep(vector))

    kept: list[bytes | Place] = []
    server.on_piece = on_piece  # type: ignore[method-assign]
    assert server.asked("alice")[1].endswith(server.content)
    assert server.spool.read(kept[0]) == vector
    server.spool.drop(kept[0])
    assert server.spool._used == 0, "what was held is let go of once it is read"
    server.spool.close()
