"""The gate judges the headers; nothing behind it runs, and no body is read, for a request that it refuses."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from starlette.types import Message, Receive, Scope, Send

from agfl_protocol.identity.request_signature import SIGNATURE_HEADER, RequestSignature, key_id, sign_request
from agfl_server.transport.gate import FLEET_CALLS, KEY_ID, UPLOAD, Gate
from agfl_server.transport.limits import Limits
from agfl_server.transport.objects.spool import Spool
from agfl_server.transport.seen_signatures import Pace, SeenSignatures

ACTIVATE = "/v1/fleet/activate-node"
KEY, STRANGER = generate_private_key(SECP384R1()), generate_private_key(SECP384R1())
LIMITS = Limits(headers_bytes=2000, body_bytes=100, tree_bytes=200, object_bytes=300, signatures=8)
NOW_NS = time.time_ns()
_nonces = iter(range(1, 10**9))


def _headers(path: str, body: bytes, time_ns: int = NOW_NS, method: str = "POST") -> list[tuple[bytes, bytes]]:
    signature = sign_request(KEY, method, path, body, time_ns, next(_nonces).to_bytes(16, "big"))
    return [(b"content-length", str(len(body)).encode()), (SIGNATURE_HEADER.encode(), signature.encode())]


class Door:
    """A gate, what got through, and how much of each body was asked for."""

    def __init__(self, room: int = 1000) -> None:
        self.gate = Gate(
            self._app,
            {key_id(KEY.public_key()): KEY.public_key()},
            lambda _, length: length <= room,
            LIMITS,
            lambda: NOW_NS,
        )
        self.passed: list[tuple[str, bytes]] = []

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"") if scope["method"] == "POST" else b""
        self.passed.append((scope.get(KEY_ID, ""), body))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def ask(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: Sequence[bytes] | None = None,
        *,
        is_cut: bool = False,
    ) -> int:
        """Return the status; `body` is None where none of it may be read. is_cut: the sender goes before its end."""
        sent: list[Message] = []
        parts = list(body or [])

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            assert body is not None, "the gate reads no body"
            if not parts:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": parts.pop(0), "more_body": is_cut or bool(parts)}

        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        asyncio.run(self.gate(scope, receive, send))
        return int(sent[0]["status"])


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.mark.parametrize("path", sorted(FLEET_CALLS))
def test_a_nodes_call_passes_with_its_body_and_its_name(path: str, door: Door) -> None:
    assert door.ask("POST", path, _headers(path, b"hello"), [b"hel", b"lo"]) == 200
    assert door.passed == [(key_id(KEY.public_key()), b"hello")]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_needs_no_key(method: str, door: Door) -> None:
    assert door.ask(method, "/health", []) == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/health"),
        ("GET", ACTIVATE),
        ("POST", ACTIVATE + "/"),
        ("POST", "//v1/fleet/activate-node"),
        ("POST", "/V1/fleet/activate-node"),
        ("POST", "/v1/fleet/"),
        ("POST", "/v1/fleet/register-node"),
    ],
)
def test_another_path_or_method_is_closed_also_to_who_signs(method: str, path: str, door: Door) -> None:
    assert door.ask(method, path, _headers(path, b"", method=method)) == 403


def test_a_body_that_is_cut_short_goes_nowhere(door: Door) -> None:
    assert door.ask("POST", ACTIVATE, _headers(ACTIVATE, b"hello"), [b"hel"], is_cut=True) == 400
    assert not door.passed


@pytest.mark.parametrize("length", [b"-1", b"", b"x", b"1 ", b"+1"])
def test_a_body_without_a_length_is_refused(length: bytes, door: Door) -> None:
    assert door.ask("POST", ACTIVATE, [(b"content-length", length), *_headers(ACTIVATE, b"")[1:]]) == 411
    assert door.ask("POST", ACTIVATE, _headers(ACTIVATE, b"")[1:]) == 411


@pytest.mark.parametrize(
    ("path", "most"), [(ACTIVATE, 100), ("/v1/fleet/push-messages", 200), (UPLOAD, 300), ("/v1/fleet/get-run", 100)]
)
def test_a_body_has_the_length_of_its_class(path: str, most: int, door: Door) -> None:
    assert door.ask("POST", path, _headers(path, b"x" * most), [b"x" * most]) == 200
    assert door.ask("POST", path, _headers(path, b"x" * (most + 1))) == 413


def test_an_absurd_length_is_refused(door: Door) -> None:
    assert door.ask("POST", ACTIVATE, [(b"content-length", b"1" * 5000), *_headers(ACTIVATE, b"")[1:]]) == 431
    assert door.ask("POST", ACTIVATE, [(b"content-length", b"1" * 1500), *_headers(ACTIVATE, b"")[1:]]) == 413


def test_a_body_longer_than_its_length_is_refused(door: Door) -> None:
    assert door.ask("POST", ACTIVATE, _headers(ACTIVATE, b"x"), [b"x", b"y"]) == 400
    assert door.passed == []


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"gzip, chunked", b""])
def test_any_transfer_encoding_is_refused(coding: bytes, door: Door) -> None:
    headers = [*_headers(ACTIVATE, b"abcd"), (b"transfer-encoding", coding)]
    assert door.ask("POST", ACTIVATE, headers) == 411
    assert door.ask("GET", "/health", [(b"transfer-encoding", coding)]) == 411


def test_two_lengths_or_two_signatures_are_refused(door: Door) -> None:
    headers = _headers(ACTIVATE, b"")
    assert door.ask("POST", ACTIVATE, [headers[0], *headers]) == 400
    assert door.ask("POST", ACTIVATE, [*headers, headers[1]]) == 400


def test_long_headers_are_refused(door: Door) -> None:
    assert door.ask("GET", "/health", [(b"x", b"a" * 2000)]) == 431


def test_no_signature_or_a_strangers_is_refused_before_the_body(door: Door) -> None:
    stranger = sign_request(STRANGER, "POST", ACTIVATE, b"", NOW_NS, bytes(16)).encode()
    length = (b"content-length", b"0")
    assert door.ask("POST", ACTIVATE, [length]) == 401
    assert door.ask("POST", ACTIVATE, [length, (SIGNATURE_HEADER.encode(), stranger)]) == 412


@pytest.mark.parametrize("place", range(6))
def test_each_field_of_the_signature_is_bound(place: int, door: Door) -> None:
    length, (name, value) = _headers(ACTIVATE, b"")
    fields = value.decode().split(" ")
    other = sign_request(STRANGER, "POST", ACTIVATE, b"x", NOW_NS + 1, bytes(15) + b"\x07").split(" ")
    fields[place] = "2" if place == 0 else other[place]
    assert door.ask("POST", ACTIVATE, [length, (name, " ".join(fields).encode())], [b""]) in (401, 412)
    assert door.passed == []


def test_the_method_the_path_and_the_body_are_bound(door: Door) -> None:
    path = "/v1/fleet/get-run"
    assert door.ask("POST", path, _headers(ACTIVATE, b"")) == 401
    assert door.ask("POST", path, _headers(path, b"", method="GET")) == 401
    assert door.ask("POST", path, _headers(path, b"abc"), [b"abd"]) == 401
    assert door.passed == []


@pytest.mark.parametrize(("seconds", "status"), [(300, 200), (-300, 200), (301, 401), (-301, 401)])
def test_a_clock_may_be_300_s_off_in_either_direction(seconds: int, status: int, door: Door) -> None:
    headers = _headers(ACTIVATE, b"", NOW_NS + seconds * 10**9)
    assert door.ask("POST", ACTIVATE, headers, [b""]) == status


def test_a_signature_is_good_for_one_request(door: Door) -> None:
    headers = _headers(ACTIVATE, b"x")
    assert door.ask("POST", ACTIVATE, headers, [b"x"]) == 200
    assert door.ask("POST", ACTIVATE, headers) == 401
    for _ in range(2 * LIMITS.signatures):  # also once it has been forgotten
        assert door.ask("POST", ACTIVATE, _headers(ACTIVATE, b"x", NOW_NS + next(_nonces)), [b"x"]) == 200
    assert door.ask("POST", ACTIVATE, headers) == 401


def test_what_nobody_waits_for_is_read_and_dropped(door: Door) -> None:
    door = Door(room=0)
    body = [b"x" * 100, b"x"]
    assert door.ask("POST", UPLOAD, _headers(UPLOAD, b"x" * 101), body) == 410
    assert door.ask("POST", UPLOAD, _headers(UPLOAD, b"x" * 100), [b"x" * 100]) == 200


def test_signatures_are_remembered_within_a_bound_and_a_time() -> None:
    seen = SeenSignatures(capacity=5)

    def use(second: int, now: int) -> bool:
        nonce = hashlib.sha256(str(second).encode()).digest()[:16]
        return seen.use(RequestSignature("", second * 10**9, nonce, b"", b""), now * 10**9)

    assert [use(second, 1000) for second in (1001, 1003, 1002, 1002)] == [True, True, True, False]
    assert [use(second, 1000) for second in (1004, 1005, 1006)] == [True] * 3  # the sixth: 1001 is forgotten
    assert not use(1001, 1000)
    assert not use(999, 1000)  # older than what was forgotten
    assert use(1400, 1400)
    assert len(seen._seen) == len(seen._by_time) == 1


def test_calls_past_the_pace_wait() -> None:
    now = 0.0
    pace = Pace(10, 3, lambda: now)
    assert [pace.wait_s() for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    now = 10.0
    assert [pace.wait_s() for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


class LongDoor:
    """A gate for long uploads, which many send at once; what is in memory of them is noted when the app has one."""

    def __init__(self, spool: Spool, limits: Limits | None = None) -> None:
        limits = limits or Limits(uploads_at_once=100, per_node=100)
        keys = {key_id(KEY.public_key()): KEY.public_key()}
        self.gate = Gate(self._app, keys, lambda _, length: True, limits, lambda: NOW_NS, spool)
        self.bodies: list[bytes] = []
        self.inside = self.most_inside = self.waiting = 0

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.bodies.append((await receive())["body"])
        await asyncio.sleep(0)
        self.inside -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def upload(
        self, body: bytes, *, signed: bytes | None = None, last: asyncio.Event | None = None, reads: bool = True
    ) -> int:
        """Send a body whose last piece waits for `last`; return the status. reads: whether the answer is read."""
        statuses: list[int] = []
        parts = [memoryview(body)[start : start + 2**16] for start in range(0, len(body), 2**16)]

        async def send(message: Message) -> None:
            if not reads:
                await asyncio.Event().wait()
            statuses.append(int(message.get("status", 0)))

        async def receive() -> Message:
            await asyncio.sleep(0)
            if last is not None and len(parts) == 1:
                self.waiting += 1
                await last.wait()
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        scope = {"type": "http", "method": "POST", "path": UPLOAD}
        headers = _headers(UPLOAD, signed or body)
        await self.gate({**scope, "headers": headers}, receive, send)
        return statuses[0]


SIZE = 3 * 2**20 + 5


def test_a_long_upload_passes_whole_and_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    door, body = LongDoor(spool), random.Random(1).randbytes(SIZE)
    assert asyncio.run(door.upload(body)) == 200
    assert door.bodies == [body]
    forged = body[:-1] + bytes([body[-1] ^ 1])
    assert asyncio.run(door.upload(forged, signed=body)) == 401
    assert asyncio.run(door.upload(body[:-1], signed=body[:-1])) == 200
    assert [len(one) for one in door.bodies] == [SIZE, SIZE - 1], "nothing of another body is left in it"
    assert spool._used == 0
    spool.close()


def test_however_many_upload_at_once_a_piece_of_each_is_in_memory_and_one_body(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    door, body, num = LongDoor(spool), bytes(SIZE), 12

    async def all_at_once() -> int:
        last = asyncio.Event()
        uploads = [asyncio.create_task(door.upload(body, last=last)) for _ in range(num)]
        while door.waiting < num:
            await asyncio.sleep(0.001)
        held = tracemalloc.get_traced_memory()[0]
        last.set()
        assert await asyncio.gather(*uploads) == [200] * num
        return held

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = asyncio.run(all_at_once()) - before
    finally:
        tracemalloc.stop()
    assert held < num * 2**19
    assert door.most_inside == 1
    spool.close()


@pytest.mark.parametrize("limits", [Limits(per_node=3, uploads_at_once=1), Limits(per_node=3, calls_at_once=1)])
def test_attack_calls_that_wait_for_their_turn_are_few(tmp_path: Path, limits: Limits) -> None:
    """Nobody looks whether their connections are there still, and each holds what has come of its body."""
    spool = Spool(tmp_path)
    door, body = LongDoor(spool, replace(limits, calls_per_s=10)), bytes(2**17)

    async def many() -> list[int]:
        last = asyncio.Event()
        uploads = [asyncio.create_task(door.upload(body, last=last)) for _ in range(20)]
        await asyncio.sleep(0.05)
        refused = [upload.result() for upload in uploads if upload.done()]
        last.set()
        assert sorted(await asyncio.gather(*uploads))[:3] == [200] * 3
        assert await door.upload(body) == 200, "their places are free again"
        return refused

    assert asyncio.run(many()) == [503] * 17
    spool.close()


def test_who_does_not_read_the_answer_to_an_upload_holds_up_nobody(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    door, body = LongDoor(spool), bytes(SIZE)

    async def both() -> int:
        deaf = asyncio.create_task(door.upload(body, reads=False))
        while not door.bodies:
            await asyncio.sleep(0.001)
        status = await asyncio.wait_for(door.upload(body), 10)
        deaf.cancel()
        return status

    assert asyncio.run(both()) == 200
    spool.close()


def test_a_disk_that_fails_is_noted_and_the_node_may_ask_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert asyncio.run(LongDoor(spool).upload(bytes(SIZE))) == 503
    assert spool.failure is not None
    assert spool._used == 0
    spool.close()
