"""What the network may ask of the server: nine calls of Flower's Fleet API, signed, and /health. All else is refused.

Flower's Control and Runtime APIs have no authentication in the open version: whoever reaches them may run
code on the server. The app behind this gate lacks them; the gate keeps it so if an upgrade adds them.
Flower reads a body before it asks who sent it, and signs nothing but the time. Here the headers are judged first, and
what they sign is all of the request.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agfl_protocol.identity.identity import NAME_RULE
from agfl_protocol.identity.request_signature import (
    MAX_CLOCK_DIFFERENCE_S,
    NAME_HEADER,
    SIGNATURE_HEADER,
    RequestSignature,
    short_id,
)
from agfl_server.transport.bodies import Refused, drain, read, received
from agfl_server.transport.limits import Limits
from agfl_server.transport.log_limits import LineLimit
from agfl_server.transport.objects.long_bodies import LongBodies
from agfl_server.transport.objects.spool import SMALL_BYTES, Spool
from agfl_server.transport.seen_signatures import Pace, SeenSignatures

# A node is registered by the operator, from its public file, and it runs installed code:
# register-node, unregister-node and get-fab are left out.
FLEET_CALLS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
ACTIVATE = "/v1/fleet/activate-node"
ANNOUNCE, UPLOAD, DOWNLOAD = "/v1/fleet/push-messages", "/v1/fleet/push-object", "/v1/fleet/pull-object"
# In the scope of a request: who signed it (for the app), and the connection that it came on (for the gate).
KEY_ID, CONNECTION = "agfl.key_id", "agfl.connection"

log = logging.getLogger("agfl.server.strangers")
log.addFilter(LineLimit())


class Provable(Protocol):
    """A connection that may stay once somebody has signed a request on it."""

    def prove(self, key_id: str) -> None:
        """Say who signed."""


@dataclass
class _Node:
    key: EllipticCurvePublicKey
    seen: SeenSignatures
    pace: Pace
    uploads: asyncio.Semaphore
    in_flight: int = 0

    @contextmanager
    def call(self, most: int) -> Iterator[None]:
        """Count a call from its headers to its answer: one whose connection is cut while it waits takes memory, too."""
        if self.in_flight >= most:
            raise Refused(503, f"calls: must be at most {most} at a time")  # honest nodes ask again after it
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class Gate:
    """The outermost ASGI layer.

    keys: {key_id: transport key} of the registered nodes. admits: whether a node may still upload so many bytes.
    spool: where a long upload is until it is here whole; then one of all is in memory at a time.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Mapping[str, EllipticCurvePublicKey],
        admits: Callable[[str, int], bool],
        limits: Limits | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        spool: Spool | None = None,
    ) -> None:
        self._limits = limits = limits or Limits()
        self._app, self._admits, self._clock_ns = app, admits, clock_ns
        self._long, self._in_memory = LongBodies(spool or Spool()), asyncio.Lock()
        self._nodes = {
            key_id: _Node(
                key,
                SeenSignatures(limits.signatures),
                Pace(limits.calls_per_s, limits.calls_at_once),
                asyncio.Semaphore(limits.uploads_at_once),
            )
            for key_id, key in keys.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 4xx."""
        assert scope["type"] == "http"
        try:
            headers = _single_headers(scope, self._limits.headers_bytes)
            if scope["path"] == "/health" and scope["method"] in ("GET", "HEAD"):
                await self._app(scope, receive, _closing(send))
                return
            await self._pass_on(scope, headers, receive, send)
        except Refused as refusal:
            if refusal.drain:
                await drain(receive)
            else:
                send = _closing(send)
            body = f"{refusal}\n".encode()
            headers_out = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": refusal.status, "headers": headers_out})
            await send({"type": "http.response.body", "body": body})

    async def _pass_on(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in FLEET_CALLS or scope["method"] != "POST":
            raise Refused(403, "closed")
        length = _length(headers, self._most(path))
        signature = self._verified(scope, headers)
        node = self._nodes[signature.key_id]
        with node.call(self._limits.per_node):
            connection: Provable | None = scope.get(CONNECTION)
            if connection is not None:
                connection.prove(signature.key_id)
            await asyncio.sleep(node.pace.wait_s())
            if path != UPLOAD:
                await self._call(scope, signature, length, receive, send)
                return
            async with node.uploads:
                # An upload's envelope is small, and so is what an honest node has to send when it owes nothing.
                more = max(0, length - self._limits.body_bytes)
                if not await asyncio.to_thread(self._admits, signature.key_id, more):
                    # Honest nodes that come too late get an answer, which a closed connection would keep from them.
                    raise Refused(410, "no reply of this length is waited for", drain=True)
                take = self._call if length < SMALL_BYTES else self._upload
                await take(scope, signature, length, receive, send)

    async def _call(self, scope: Scope, signature: RequestSignature, length: int, receive: Receive, send: Send) -> None:
        body = await read(receive, length)
        if hashlib.sha256(body).digest() != signature.body_hash:
            raise Refused(401, "signature: must be of this body")
        scope[KEY_ID] = signature.key_id
        give = received(body, receive)
        del body
        await self._app(scope, give, send)

    async def _upload(
        self, scope: Scope, signature: RequestSignature, length: int, receive: Receive, send: Send
    ) -> None:
        """As `_call`; however many nodes send, and however slowly, memory holds a piece of each and one body."""
        answer: list[Message] = []

        async def note(message: Message) -> None:
            answer.append(message)

        with self._long.room(length) as place:
            if await self._long.store(receive, length, place) != signature.body_hash:
                raise Refused(401, "signature: must be of this body")
            scope[KEY_ID] = signature.key_id
            async with self._in_memory:
                await self._app(scope, received(await self._long.read(place), receive), note)
        for message in answer:  # not before: who does not read it would hold up all others
            await send(message)

    def _most(self, path: str) -> int:
        limits = self._limits
        return {ANNOUNCE: limits.tree_bytes, UPLOAD: limits.object_bytes}.get(path, limits.body_bytes)

    def _verified(self, scope: Scope, headers: Mapping[bytes, bytes]) -> RequestSignature:
        """Return the signature of a request, which is used from now on.

        Raises:
            Refused: the node is not registered (412), or the signature is no good (401).
        """
        signature = RequestSignature.parse(headers.get(SIGNATURE_HEADER.encode(), b"").decode("latin-1"))
        if signature is None:
            raise Refused(401, "signature: required")
        node = self._nodes.get(signature.key_id)
        if node is None:
            if scope["path"] == ACTIVATE:
                _log_stranger(scope, headers, signature.key_id)
            raise Refused(412, "key: must be registered")
        now_ns = self._clock_ns()
        if abs(now_ns - signature.time_ns) > MAX_CLOCK_DIFFERENCE_S * 10**9:
            raise Refused(401, f"time: must be within {MAX_CLOCK_DIFFERENCE_S} s of the server's")
        if not signature.is_valid(node.key, scope["method"], scope["path"]):
            raise Refused(401, "signature: must be of this request by this key")
        if not node.seen.use(signature, now_ns):
            raise Refused(401, "signature: must not be used twice")
        return signature


def _log_stranger(scope: Scope, headers: Mapping[bytes, bytes], key_id: str) -> None:
    """Tell the operator who is not admitted, as it says itself: nobody has checked the name."""
    name = headers.get(NAME_HEADER.encode(), b"").decode("latin-1")
    named = f"says that it is {name}" if re.fullmatch(NAME_RULE, name) else "gives no name"
    address = (scope.get("client") or ("an unknown address",))[0]
    log.warning("not admitted: a node at %s %s, transport key %s", address, named, short_id(key_id))


def _single_headers(scope: Scope, max_bytes: int) -> dict[bytes, bytes]:
    """Return the headers. Of those that say where a body ends there is one, of one kind, so that nobody disagrees."""
    headers: dict[bytes, bytes] = {}
    if sum(len(name) + len(value) for name, value in scope["headers"]) > max_bytes:
        raise Refused(431, f"headers: must have at most {max_bytes} bytes")
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            raise Refused(411, "transfer-encoding: not taken, send a content-length")
        if name in headers and name in (b"content-length", SIGNATURE_HEADER.encode()):
            raise Refused(400, f"{name.decode('latin-1')}: must be there once")
        headers[name] = value
    return headers


def _length(headers: Mapping[bytes, bytes], max_bytes: int) -> int:
    length = headers.get(b"content-length", b"")
    if not length.isdigit():
        raise Refused(411, "content-length: required")
    if len(length) > 15 or int(length) > max_bytes:
        raise Refused(413, f"body: must have at most {max_bytes} bytes")
    return int(length)


def _closing(send: Send) -> Send:
    """Return a `send` that ends the connection: those without a signature do not stay."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return closing
