"""A long answer leaves in parts, and a connection that had one keeps no room for it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from agfl_server.transport.https import _PART_BYTES, _BoundedHttp


def sent(*bodies: bytes) -> list[dict[str, Any]]:
    """Return what becomes of an answer in these pieces."""
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def answer() -> None:
        waits: list[float] = []
        protocol: Any = SimpleNamespace(_limits=SimpleNamespace(keep_alive_s=7.0), _wait=waits.append)
        await _BoundedHttp._send_in_parts(protocol, send, {"type": "http.response.start", "status": 200})
        for body in bodies:
            await _BoundedHttp._send_in_parts(protocol, send, {"type": "http.response.body", "body": body})
        assert waits == [7.0], "who does not read is cut in the end, however many pieces there are"

    asyncio.run(answer())
    return messages


def test_a_long_answer_leaves_in_parts_and_ends_once() -> None:
    for size in (0, 1, _PART_BYTES, _PART_BYTES + 1, 3 * _PART_BYTES + 5):
        body = bytes(i % 251 for i in range(size))
        head, *parts = sent(body)
        assert head == {"type": "http.response.start", "status": 200}
        assert b"".join(part["body"] for part in parts) == body
        assert max(len(part["body"]) for part in parts) <= _PART_BYTES
        assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]


def test_attack_who_reads_slowly_has_one_time_for_all_pieces() -> None:
    assert len(sent(*[bytes(2 * _PART_BYTES)] * 20)) == 41
