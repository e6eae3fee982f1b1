"""What anybody can do who reaches the port: open connections and write bytes into them."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from pathlib import Path


class Strangers:
    """Connections to a server on 127.0.0.1, closed at the end of the block."""

    def __init__(self, port: int, ca: Path) -> None:
        self._address = ("127.0.0.1", port)
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._stack = ExitStack()

    def __enter__(self) -> Strangers:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def tcp(self) -> socket.socket:
        """Connect and say nothing."""
        return self._stack.enter_context(socket.create_connection(self._address, timeout=10))

    def tls(self) -> ssl.SSLSocket:
        """Connect and shake hands."""
        plain = socket.create_connection(self._address, timeout=10)
        return self._stack.enter_context(self._tls.wrap_socket(plain, server_hostname="127.0.0.1"))

    def ask(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own; return all that comes back until the server closes it."""
        return answer(self.tls(), request)


def answer(connection: ssl.SSLSocket, request: bytes = b"") -> bytes:
    """Send bytes; return all that comes back until the server closes the connection."""
    got = b""
    with suppress(OSError):
        connection.sendall(request)
    with suppress(OSError):
        while part := connection.recv(2**16):
            got += part
    return got


def is_open(connection: socket.socket) -> bool:
    """Return whether the server has not closed a connection that it sends nothing on."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(10)
