"""The TLS listener says what is wrong with its address or its certificate, and gives the port back."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.attacks.strangers import Strangers

from agfl_models.errors import IdentityError, TransportError
from agfl_server.federation import federation_folder

if TYPE_CHECKING:
    from tests.server.conftest import Site


def test_a_port_in_use_is_named(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            TransportError, match=rf"must be a free address .* got 127.0.0.1:{port} .*in use.*AGFL-TRANSPORT-001"
        ):
            site.superlink(port).__enter__()


def test_a_host_of_another_machine_is_named(site: Site) -> None:
    found = site.federation
    server = type(site.superlink())(found.nodes, certificate=found.certificate, key=found.key, host="192.0.2.1")
    with pytest.raises(TransportError, match=r"host and port: .* got 192\.0\.2\.1:8443.*AGFL-TRANSPORT-001"):
        server.__enter__()


@pytest.mark.parametrize("name", ["server.pem", "server.key"])
def test_a_missing_certificate_or_key_is_named(name: str, site: Site) -> None:
    server = site.superlink()
    (site.root / "federation" / name).unlink()
    with pytest.raises(IdentityError, match=rf"{name}: .*AGFL-IDENTITY-061"):
        server.__enter__()


@pytest.mark.parametrize("name", ["server.pem", "server.key"])
def test_a_malformed_certificate_or_key_is_named(name: str, site: Site) -> None:
    server = site.superlink()
    (site.root / "federation" / name).write_text("hello")
    with pytest.raises(
        IdentityError, match=r"server\.pem: must be a PEM certificate that fits .*server\.key.*AGFL-IDENTITY-062"
    ):
        server.__enter__()


def test_a_key_of_another_certificate_is_named(site: Site, tmp_path: Path) -> None:
    federation_folder.init(tmp_path / "other", "", [])
    server = site.superlink()
    other = (tmp_path / "other" / "server.key").read_bytes()
    (site.root / "federation" / "server.key").write_bytes(other)
    with pytest.raises(IdentityError, match=r"server\.pem: .*AGFL-IDENTITY-062"):
        server.__enter__()


def test_answers_do_not_wait_for_the_peer_to_confirm_their_beginning(site: Site) -> None:
    with site.superlink() as server, Strangers(server.port, site.ca) as strangers:
        strangers.tls()
        connections = server._https._server._server.server_state.connections
        site.wait_until(lambda: len(connections) == 1)
        stream = next(iter(connections)).transport.get_extra_info("socket")
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_the_parser_and_the_loop_are_the_same_whatever_is_installed(site: Site) -> None:
    with site.superlink() as server:
        config = server._https._server._server.config
        assert config.http_protocol_class.__module__ == "uvicorn.protocols.http.h11_impl"
        assert config.loop == "asyncio"
