"""An ASGI app on one port, in a thread of this process."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp

from agfl_models.errors import TransportError

_KEEP_ALIVE_S = 75  # longer than a node's pause between requests, training aside: each reconnect is a handshake
_SHUTDOWN_S = 1
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a family of addresses that this machine or container has not


class AsgiServer:
    """Serves `app` from `__enter__` to `__exit__`, which frees the port. Signals stay with the caller.

    Args:
        app: what answers the requests.
        host, port: the address to listen on; port 0 takes any free one.
        server_of: what makes uvicorn's server, where it is to be another.
        max_header_bytes: of a request, while they come in.

    Raises (on entry):
        TransportError: the address cannot be listened on.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        server_of: Callable[[uvicorn.Config], StoppableServer] | None = None,
        max_header_bytes: int = 2**16,
    ) -> None:
        self._app, self._host, self._requested_port = app, host, port
        self._server_of, self._max_header_bytes = server_of or StoppableServer, max_header_bytes

    @property
    def port(self) -> int:
        """The port listened on, also where port 0 asked for any free one; valid inside the block."""
        return self._port

    def __enter__(self) -> AsgiServer:
        """Listen; return once the first request would be answered."""
        listeners = _listen(without_brackets(self._host), self._requested_port)
        self._port = int(listeners[0].getsockname()[1])
        # The parser and the loop are named, or they would be whichever happen to be installed.
        config = uvicorn.Config(
            self._app,
            http="h11",
            loop="asyncio",
            h11_max_incomplete_event_size=self._max_header_bytes,
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
        self._server = self._server_of(config)
        # In a thread other than the main one uvicorn leaves signal handlers alone.
        run, arguments = self._server.run, {"sockets": listeners}
        self._thread = threading.Thread(target=run, kwargs=arguments, name="asgi", daemon=True)
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

    def wait(self) -> None:
        """Return when the server has stopped, which it does not by itself: a signal's exception ends the wait."""
        self._thread.join()


class StoppableServer(uvicorn.Server):
    """uvicorn's server, which stops although nodes hold connections open."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # An idle node does not answer the end of TLS, so its connection has to be cut.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        while self.server_state.connections:
            await asyncio.sleep(0.01)


def without_brackets(host: str) -> str:
    """Return an address as the system has it: of IPv6 without the brackets that it has before a port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _listen(host: str, port: int) -> list[socket.socket]:
    """Listen on all addresses of a name, as localhost has two of them, and with :: on those of IPv4 as well."""
    listeners: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            both = family == socket.AF_INET6 and address == "::" and socket.has_dualstack_ipv6()
            try:
                listeners.append(socket.create_server((address, port), family=family, dualstack_ipv6=both))
            except OSError as error:
                if error.errno not in _NOT_HERE or not (listeners or address != host):
                    raise
            else:
                port = int(listeners[0].getsockname()[1])
        if not listeners:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except (OSError, UnicodeError) as error:
        for listener in listeners:
            listener.close()
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise TransportError(
            "AGFL-TRANSPORT-001", f"host and port: must be a free address of this machine, got {place} ({reason})"
        ) from None
    return listeners


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    """Return family and address of all that a name stands for."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found))
