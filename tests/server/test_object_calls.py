"""Objects that the server sends: large ones piece by piece, to whoever may, never from room that another has."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
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

from agfl_server.transport.gate import CONNECTION, DOWNLOAD, KEY_ID, UPLOAD
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
        self.layer = ObjectCalls(self._flower, self.objects, lambda key, _: 0 if key == "alice" else 401, self._store)

        self.status, self.aborted = 0, 0

    def abort(self) -> None:
        """As a connection's."""
        self.aborted += 1

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
            self.status = message.get("status", self.status)
            headers.update(message.get("headers", ()))
            pieces.append(message.get("body", b""))
            self.on_piece(len(pieces))

        async def receive() -> Message:
            given = PullObjectRequest(object_id=self.id).SerializeToString() if body is None else body
            return {"type": "http.request", "body": given}

        asyncio.run(self.layer({"type": "http", "path": path, KEY_ID: name, CONNECTION: self}, receive, send))
        return headers, b"".join(pieces)

    def on_piece(self, number: int) -> None:
        """What happens meanwhile."""


@pytest.mark.parametrize("size", [3, 2**16, 2**18, 2**18 + 1, 5 * 2**20 + 99])
def test_an_object_comes_as_flower_would_send_it(tmp_path: Path, size: int) -> None:
    server = Server(tmp_path, random.Random(size).randbytes(size))
    headers, body = server.asked("alice")
    expected = PullObjectResponse(object_found=True, object_available=True, object_content=server.content)
    assert body == expected.SerializeToString()
    assert headers[b"content-length"] == str(len(body)).encode()
    assert not server.passed_on
    server.spool.close()


def test_what_is_not_there_or_not_the_callers_is_flowers_to_answer(tmp_path: Path) -> None:
    server = Server(tmp_path, bytes(2**20))
    request = PullObjectRequest(object_id=server.id).SerializeToString()
    for name, path, body in (
        ("bob", DOWNLOAD, request),
        ("alice", DOWNLOAD, b"\xff"),
        ("alice", "/v1/fleet/get-run", request),
        ("alice", DOWNLOAD, PullObjectRequest(object_id="b" * 64).SerializeToString()),
        ("alice", DOWNLOAD, PullObjectRequest(object_id="c" * 64).SerializeToString()),
    ):
        server.objects.preregister(1, ObjectTree(object_id="c" * 64))  # announced, and not here yet
        assert server.asked(name, path, body) == ({}, b"")
        assert server.passed_on.pop() == body
    server.spool.close()


def test_an_object_that_comes_is_stored(tmp_path: Path) -> None:
    server = Server(tmp_path, bytes(2**20))
    request = PushObjectRequest(run_id=3, session_id="s", object_id="c" * 64, object_content=b"numbers")
    _, body = server.asked("alice", UPLOAD, request.SerializeToString())
    assert PushObjectResponse.FromString(body).stored
    assert server.taken == [(3, "s", "c" * 64, b"numbers")]
    server.spool.close()


@pytest.mark.parametrize(("name", "body", "status"), [("alice", b"\xff" * 2**17, 400), ("bob", b"", 401)])
def test_attack_flower_never_has_an_upload_that_is_refused(tmp_path: Path, name: str, body: bytes, status: int) -> None:
    """It would have the body several times, for as long as it takes its collector to come by."""
    server = Server(tmp_path, bytes(2**20))
    server.asked(name, UPLOAD, body)
    assert server.status == status
    assert not server.passed_on
    assert not server.taken
    server.spool.close()


def test_a_disk_that_gives_nothing_back_is_noted_and_cuts_the_node_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for the rest of an answer, and the run for it."""
    server = Server(tmp_path, bytes(2**20))

    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fails)
        server.asked("alice")
    assert server.aborted == 1
    assert server.spool.failure is not None
    server.spool.close()


def test_attack_a_slow_disk_holds_up_nobody_who_asks_for_another_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop asks where an object is: it must not wait until another is written, read or truncated away."""
    server, slow, go_on = Server(tmp_path, bytes(2**20)), threading.Event(), threading.Event()
    content = b"ArrayChunk  %d\x00" % 2**17 + bytes(2**17)
    other = hashlib.sha256(content).hexdigest()
    server.objects.preregister(1, ObjectTree(object_id=other))
    pwrite = os.pwrite

    def slowly(*args: Any) -> int:
        slow.set()
        assert go_on.wait(10)
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", slowly)
    writer = threading.Thread(target=server.objects.put, args=(other, content))
    writer.start()
    assert slow.wait(10)
    asking = threading.Thread(target=server.asked, args=("alice",))
    asking.start()
    asking.join(5)
    assert not asking.is_alive()
    assert server.objects.get(other) == content, "in memory until it is on the disk"
    go_on.set()
    writer.join(10)
    assert server.objects.get(other) == content
    for object_id in (server.id, other):
        server.objects.delete(object_id)
    assert server.spool._used == 0
    server.spool.close()


def test_attack_an_object_that_is_deleted_while_it_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pwrite = Server(tmp_path, bytes(2**20)), os.pwrite
    content = b"ArrayChunk  %d\x00" % 2**17 + bytes(2**17)
    other = hashlib.sha256(content).hexdigest()
    server.objects.preregister(1, ObjectTree(object_id=other))

    def deleted_meanwhile(*args: Any) -> int:
        server.objects.delete(other)
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", deleted_meanwhile)
    server.objects.put(other, content)
    server.objects.delete(server.id)
    assert server.spool._used == 0
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
