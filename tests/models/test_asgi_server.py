"""Where a server listens: addresses of both families, in each form that people write them."""

from __future__ import annotations

import socket

import pytest
from starlette.types import Receive, Scope, Send

from agfl_models.errors import TransportError
from agfl_models.web import asgi_server
from agfl_models.web.asgi_server import AsgiServer


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            return stream.recv(100).startswith(b"HTTP/1.1 204")
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    ("host", "families"),
    [
        ("127.0.0.1", "4"),
        ("0.0.0.0", "4"),
        pytest.param("::1", "6", marks=needs_ipv6),
        pytest.param("[::1]", "6", marks=needs_ipv6),
        pytest.param("::", "46", marks=needs_ipv6),
        pytest.param("[::]", "46", marks=needs_ipv6),
    ],
)
def test_a_server_listens_on_the_families_of_its_address(host: str, families: str) -> None:
    with AsgiServer(app, host, 0) as server:
        assert answers("127.0.0.1", server.port) == ("4" in families)
        if _has_ipv6():
            assert answers("::1", server.port) == ("6" in families)


@needs_ipv6
def test_a_name_of_two_addresses_is_listened_on_at_both(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    monkeypatch.setattr(asgi_server, "_addresses", lambda host, port: both)
    with AsgiServer(app, "localhost", 0) as server:
        assert answers("127.0.0.1", server.port)
        assert answers("::1", server.port)


def test_a_name_one_of_whose_addresses_is_not_here_is_listened_on_at_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.1")]  # the first is for documents, nobody's
    monkeypatch.setattr(asgi_server, "_addresses", lambda host, port: both)
    with AsgiServer(app, "localhost", 0) as server:
        assert answers("127.0.0.1", server.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "[2001:db8::1]", "x" * 70 + ".example"])
def test_an_address_that_is_not_here_is_one_line(host: str) -> None:
    with pytest.raises(TransportError, match=r"^host and port: .*got .*:1 \(.*AGFL-TRANSPORT-001"):
        AsgiServer(app, host, 1).__enter__()
