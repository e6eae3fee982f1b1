"""An ASGI app on one TLS port, in a thread of this process, that strangers can neither fill nor hold up.

uvicorn's parser h11 and Python's loop are fixed, whatever else is installed; what uvicorn does not bound is bounded
here: connections from the moment they are accepted, the handshake, the headers, and silence.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from agfl_models.errors import IdentityError
from agfl_models.web.asgi_server import AsgiServer, StoppableServer
from agfl_server.transport.connections import Connection, Connections, raise_file_limit, sweep_for_ever
from agfl_server.transport.gate import CONNECTION
from agfl_server.transport.limits import Limits
from agfl_server.transport.log_limits import limit_logs

_BACKLOG = 1024
_SWEEPS_PER_SILENCE = 15
_RETRY_S = 0.1
_CLOSE_S = 2.0
_PART_BYTES = 2**16

log = logging.getLogger("agfl.server")


class HttpsServer:
    """Serves `app` from `__enter__` to `__exit__`, as `AsgiServer` does, with a certificate and within limits.

    Raises (on entry):
        TransportError: the address cannot be listened on.
        IdentityError: the certificate or its key cannot be read or do not fit.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, certificate: Path, key: Path, limits: Limits | None = None
    ) -> None:
        self._app, self._host, self._requested_port = app, host, port
        self._certificate, self._key, self._limits = certificate, key, limits or Limits()

    @property
    def port(self) -> int:
        """The port listened on, also where port 0 asked for any free one; valid inside the block."""
        return self._server.port

    def __enter__(self) -> HttpsServer:
        """Listen; return once the first request would be answered."""
        tls = _server_tls(self._certificate, self._key)
        limit_logs()
        connections = Connections(self._limits, raise_file_limit())
        server_of = partial(_BoundedServer, tls=tls, connections=connections, limits=self._limits)
        self._server = AsgiServer(
            self._app,
            self._host,
            self._requested_port,
            server_of=server_of,
            max_header_bytes=self._limits.headers_bytes,
        )
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections, at most a second after the last request, and free the port."""
        self._server.__exit__(kind, error, trace)


class _BoundedServer(StoppableServer):
    """Accepts by itself, so that a connection counts from its first packet and a lack of files is waited out."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext, connections: Connections, limits: Limits) -> None:
        config.timeout_keep_alive = math.ceil(limits.keep_alive_s)
        super().__init__(config)
        self._tls, self._connections, self._limits = tls, connections, limits
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        await self.lifespan.startup()
        self.servers: list[asyncio.base_events.Server] = []
        for listener in sockets:
            listener.setblocking(False)
            listener.listen(_BACKLOG)
            self._begin(self._accept(listener))
        limits = self._limits
        every_s = min(limits.headers_s, limits.silence_s, limits.keep_alive_s, 15.0) / _SWEEPS_PER_SILENCE
        self._begin(sweep_for_ever(self._connections, every_s))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown(sockets)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        warned = False
        while True:
            try:
                stream, peer = await loop.sock_accept(listener)
                # Python's loop does so only for sockets that say by number that they are TCP: without, 40 ms an answer.
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:  # no files or memory are left, or the peer has gone already
                if not warned:
                    log.warning("cannot accept connections at the moment: %s", error.strerror)
                warned = True
                await asyncio.sleep(_RETRY_S)
                continue
            connection = self._connections.admit(str(peer[0]))
            connection.abort = stream.close
            self._begin(self._shake_hands(stream, connection))

    async def _shake_hands(self, stream: socket.socket, connection: Connection) -> None:
        if connection.is_cut:
            return
        this_task = asyncio.current_task()
        assert this_task is not None
        connection.abort = this_task.cancel  # the transport, which closes the stream, comes with the handshake's end
        protocol_of = partial(
            _BoundedHttp,
            self.config,
            self.server_state,
            self.lifespan.state,
            connection,
            self._connections,
            self._limits,
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                protocol_of,
                stream,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.headers_s,
                ssl_shutdown_timeout=_CLOSE_S,
            )
        except (OSError, asyncio.CancelledError):  # ssl.SSLError and TimeoutError are OSErrors
            self._connections.drop(connection)


class _BoundedHttp(H11Protocol):
    """One connection's HTTP, which says when it will have waited long enough."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: Any,
        app_state: dict[str, Any],
        connection: Connection,
        connections: Connections,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._connection, self._connections, self._limits = connection, connections, limits
        self._in_headers, self._body_deadline = True, math.inf
        inner = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[CONNECTION] = connection
            given = set(scope)
            try:
                await inner(scope, receive, partial(self._send_in_parts, send))
            finally:  # a connection keeps its last scope, and there the app has the whole request
                for name in set(scope) - given:
                    del scope[name]
                scope["state"] = {}

        self.app = app

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection.abort = transport.abort

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.drop(self._connection)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._in_headers and self.conn.their_state is h11.IDLE:
            self._in_headers = True  # of another request: the time for all of them runs from the first byte
            self._wait(self._limits.headers_s)
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.transport.is_closing():
            return
        if self._in_headers:
            self._body_deadline = self.loop.time() + self._limits.keep_alive_s
        self._in_headers, self._connection.is_busy = False, True
        is_whole = self.conn.their_state is not h11.SEND_BODY
        if is_whole and self.conn.trailing_data[0]:
            self.transport.abort()  # another request before the answer to this one: no node does that
        self._wait(math.inf if is_whole else self._limits.silence_s)
        if not is_whole:  # a byte a minute would hold room on the disk for the whole run
            self._connection.deadline = min(self._connection.deadline, self._body_deadline)

    def on_response_complete(self) -> None:
        self._connection.is_busy = False
        self._wait(_CLOSE_S if self.transport.is_closing() else self._limits.keep_alive_s)
        super().on_response_complete()

    async def _send_in_parts(self, send: Send, message: Message) -> None:
        """Send a long answer part by part: a connection keeps room for the longest part that it ever had to encrypt."""
        if message["type"] == "http.response.start":
            self._wait(self._limits.keep_alive_s)  # for all parts: each in its own time would be hours
        body = memoryview(message.get("body", b""))
        while len(body) > _PART_BYTES:
            await send({**message, "body": bytes(body[:_PART_BYTES]), "more_body": True})
            body = body[_PART_BYTES:]
        await send({**message, "body": bytes(body)} if "body" in message else message)

    def _wait(self, seconds: float) -> None:
        self._connection.deadline = self.loop.time() + seconds


def _server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for path in (certificate, key):
        if not path.is_file():
            raise IdentityError("AGFL-IDENTITY-061", f"{path}: no such file")
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise IdentityError(
            "AGFL-IDENTITY-062", f"{certificate}: must be a PEM certificate that fits {key}, got: {error}"
        ) from None
    return context
