"""The gate reads path, method and length; nothing behind it runs for a request that it refuses."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from agfl_server.gate import FLEET_CALLS, MAX_REQUEST_BYTES, Gate

ACTIVATE = "/v1/fleet/activate-node"


def _status(method: str, path: str, length: bytes | None) -> int:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the gate reads no body")

    headers = [] if length is None else [(b"content-length", length)]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Gate(app)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", sorted(FLEET_CALLS))
def test_a_nodes_call_passes(path: str) -> None:
    assert _status("POST", path, b"0") == 200


@pytest.mark.parametrize(
    ("method", "path", "length", "status"),
    [
        ("GET", "/health", None, 200),
        ("HEAD", "/health", None, 200),
        ("POST", "/health", b"1", 403),
        ("GET", ACTIVATE, b"1", 403),
        ("POST", ACTIVATE + "/", b"1", 403),
        ("POST", "//v1/fleet/activate-node", b"1", 403),
        ("POST", "/V1/fleet/activate-node", b"1", 403),
        ("POST", "/v1/fleet/", b"1", 403),
        ("POST", ACTIVATE, None, 411),
        ("POST", ACTIVATE, b"-1", 411),
        ("POST", ACTIVATE, b"", 411),
        ("POST", ACTIVATE, str(MAX_REQUEST_BYTES).encode(), 200),
        ("POST", ACTIVATE, str(MAX_REQUEST_BYTES + 1).encode(), 413),
    ],
)
def test_another_request_is_judged(method: str, path: str, length: bytes | None, status: int) -> None:
    assert _status(method, path, length) == status
