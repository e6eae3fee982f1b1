"""The proxy variables that people have, in each form that they have, settled without a look at the network."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.clientapp import ClientApp

from agfl_client.transport.proxies import is_this_machine, proxy_for
from agfl_client.transport.supernode import run_node
from agfl_models.errors import TransportError
from agfl_server.federation.authority import Authority

PROXY = {"HTTPS_PROXY": "http://proxy.example.org:3128"}


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://proxy:3128/", "http://proxy:3128"),
        ("proxy:3128", "http://proxy:3128"),
        (" 'http://proxy' ", "http://proxy:80"),
        ("https://proxy", "https://proxy:443"),
        ("HTTP://Proxy:3128", "http://proxy:3128"),
        ("http://ann:p%40ss@proxy:3128", "http://ann:p%40ss@proxy:3128"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
        ("10.0.0.1:8080", "http://10.0.0.1:8080"),
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_taken_in_every_form(variable: str, value: str, url: str) -> None:
    found = proxy_for("fl.example.org", 8443, {variable: value})
    assert found is not None
    assert (found.url, found.variable) == (url, variable)
    assert "p%40ss" not in found.shown


@pytest.mark.parametrize(
    "value",
    ["socks5://ann:secret@proxy:1080", "socks://proxy", "proxy:99999", "http://proxy/x", ":8080", "http://[::1"],
)
def test_a_proxy_that_cannot_be_used_is_one_line_with_its_variable(value: str) -> None:
    with pytest.raises(
        TransportError, match=r"^ALL_PROXY: must name a proxy as http://HOST:PORT .*NO_PROXY=fl.*AGFL-TRANSPORT-002"
    ) as error:
        proxy_for("fl.example.org", 8443, {"ALL_PROXY": value})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("environment", [{}, {"HTTP_PROXY": "http://proxy:1"}, {"HTTPS_PROXY": " "}])
def test_there_is_none(environment: dict[str, str]) -> None:
    assert proxy_for("fl.example.org", 8443, environment) is None


def test_lower_case_and_https_come_first() -> None:
    environment = {"ALL_PROXY": "a:1", "HTTPS_PROXY": "b:1", "https_proxy": "c:1", "http_proxy": "d:1"}
    assert [proxy_for("x", 1, dict(list(environment.items())[:n])).shown for n in (1, 2, 3, 4)] == [  # type: ignore[union-attr]
        "a:1",
        "b:1",
        "c:1",
        "c:1",
    ]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_this_machine_is_reached_without_one(host: str) -> None:
    assert is_this_machine(host)
    assert proxy_for(host, 8443, {"https_proxy": "socks5://even-this"}) is None


@pytest.mark.parametrize(
    ("host", "no_proxy"),
    [
        ("fl.example.org", "*"),
        ("fl.example.org", "fl.example.org"),
        ("fl.example.org", "FL.Example.org."),
        ("fl.example.org", "example.org"),
        ("fl.example.org", ".example.org"),
        ("fl.example.org", "*.example.org"),
        ("fl.example.org", "localhost, ,127.0.0.1,,fl.example.org:8443"),
        ("fl.example.org", "localhost 127.0.0.1 .org"),
        ("fl.example.org", "https://fl.example.org"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3:8443"),
        ("10.1.2.3", "10.*"),
        ("::ffff:10.1.2.3", "10.0.0.0/8"),
        ("fd00:1234::5", "localhost,fd00:1234::/32"),
        ("fd00:1234::5", "[fd00:1234::5]"),
        ("fd00:1234::5", "[FD00:1234:0::5]:8443"),
        ("fd00:1234::5", "[fd00:1234::]/32"),
        ("fe80::1%eth0", "fe80::/10"),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_what_no_proxy_names_is_reached_without_one(host: str, no_proxy: str, variable: str) -> None:
    assert proxy_for(host, 8443, {**PROXY, variable: no_proxy}) is None


@pytest.mark.parametrize(
    ("host", "no_proxy"),
    [
        ("fl.example.org", "fl.example.org:443"),
        ("notexample.org", "example.org"),
        ("10.1.2.3", "fd00:1234::/32,[::1],::1,.2.3"),
        ("fd00:1234::5", "10.0.0.0/8,fd01::/16,[fd00:1234::5]:1"),
        ("10.1.2.3", "10.1.2.0/99,[x,]:,:,:1,//,%,[::]x,fe80::%eth0/64"),
    ],
)
def test_what_it_does_not_name_is_not_and_nothing_stops_at_it(host: str, no_proxy: str) -> None:
    assert proxy_for(host, 8443, {**PROXY, "NO_PROXY": no_proxy}) is not None


@contextmanager
def answering(reply: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy on loopback that gives every request this answer; yields its port and what it was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            with stream:
                asked.append(stream.recv(4096))
                stream.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_node_goes_by_the_proxy_and_names_it_where_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_bytes(Authority.new().pem)
    for name in ("https_proxy", "all_proxy", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1,fd00:1234::/32,[::1]")
    with answering(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n") as (port, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:secret@127.0.0.1:{port}")
        way = rf"\(407 .*\) by way of the proxy 127\.0\.0\.1:{port}, which HTTPS_PROXY names; NO_PROXY=fl\.example"
        with pytest.raises(TransportError, match=way) as error:
            run_node(
                "fl.example.test:8443",
                tmp_path / "ca.pem",
                generate_private_key(SECP384R1()),
                ClientApp(),
                stop=threading.Event(),
                finished=lambda: False,
                max_wait_s=0,
            )
    assert asked
    assert all(re.match(rb"CONNECT fl\.example\.test:8443 HTTP/1\.1\r\n", request) for request in asked)
    assert "secret" not in str(error.value)
