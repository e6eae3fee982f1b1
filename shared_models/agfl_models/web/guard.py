"""What stands before the app: requests that it need not read, and what every answer tells a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agfl_models.errors import RequestError

MAX_REQUEST_BYTES = 2**20
_DISCARD_S = 1.0


class Guard:
    """The outermost ASGI layer.

    Args:
        app: what is guarded.
        hosts: names under which a browser may know this server; None for any. A page from elsewhere whose name was
            made to lead here (DNS rebinding) comes under its own.
        headers: of every answer.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, headers: Mapping[str, str]) -> None:
        self._app, self._hosts, self._headers = app, hosts, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403 (wrong name), 411 (no length) or 413 (too long)."""
        assert scope["type"] == "http"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        if "expect" not in Headers(scope=scope):  # who expects an answer first has sent nothing yet
            await _discard(receive)
        status, error = refusal
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send_guarded({"type": "http.response.start", "status": status, "headers": headers})
        body = json.dumps({"error": error.sentence, "code": error.code}).encode()
        await send_guarded({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, RequestError] | None:
        headers = Headers(scope=scope)
        host = _without_port(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            line = f"host: must be {' or '.join(sorted(self._hosts))}, got {host!r}"
            return 403, RequestError("AGFL-REQUEST-005", line)
        if scope["method"] in ("GET", "HEAD"):
            return None
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return 411, RequestError("AGFL-REQUEST-006", f"content-length: required, got {length or 'none'!r}")
        if len(length) > len(str(MAX_REQUEST_BYTES)) or int(length) > MAX_REQUEST_BYTES:
            line = f"body: must have at most {MAX_REQUEST_BYTES} bytes, got {length}"
            return 413, RequestError("AGFL-REQUEST-007", line)
        return None


async def _discard(receive: Receive) -> None:
    """Read what is on its way, up to a bound: a connection that is closed on unread bytes loses the answer, too."""
    size, is_more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while is_more and size <= MAX_REQUEST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                is_more = message.get("more_body", False)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
