"""An ASGI app on one TLS port, in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp

from agfl_models.errors import IdentityError, TransportError

_KEEP_ALIVE_S = 75  # longer than a node's pause between requests, training aside: each reconnect is a handshake
_SHUTDOWN_S = 1


class HttpsServer:
    """Serves `app` from `__enter__` to `__exit__`, which frees the port. Signals stay with the caller.

    Raises (on entry):
        TransportError: the address cannot be listened on.
        IdentityError: the certificate or its key cannot be read or do not fit.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, certificate: Path, key: Path) -> None:
        self._app, self._host, self._requested_port = app, host, port
        self._certificate, self._key = certificate, key

    @property
    def port(self) -> int:
        """The port listened on, also where port 0 asked for any free one; valid inside the block."""
        return self._port

    def __enter__(self) -> HttpsServer:
        """Listen; return once the first request would be answered."""
        tls = _server_tls(self._certificate, self._key)
        listener = _listen(self._host, self._requested_port)
        self._port = int(listener.getsockname()[1])
        config = uvicorn.Config(
            self._app,
            ssl_context_factory=lambda _config, _default: tls,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        self._server = _Server(config)
        # In a thread other than the main one uvicorn leaves signal handlers alone.
        run, arguments = self._server.run, {"sockets": [listener]}
        self._thread = threading.Thread(target=run, kwargs=arguments, name="https", daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections, at most a second after the last request, and free the port."""
        self._server.should_exit = True
        self._thread.join()


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # An idle node does not answer the end of TLS, so its connection has to be cut.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        while self.server_state.connections:
            await asyncio.sleep(0.01)


def _server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for path in (certificate, key):
        if not path.is_file():
            raise IdentityError(f"{path}: no such file")
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise IdentityError(f"{certificate}: must be a PEM certificate that fits {key}, got: {error}") from None
    return context


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise TransportError(
            f"host and port: must be a free address of this machine, got {host}:{port} ({reason})"
        ) from None
