"""A node takes one address and one CA, and says what is wrong with either."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from agfl_client.transport.server_trust import TrustedServer
from agfl_models.errors import IdentityError, TransportError


@pytest.mark.parametrize("address", ["localhost:8443", "10.0.0.1:1", "[::1]:8443", "a.example.org:65535"])
def test_an_address_is_host_and_port(address: str) -> None:
    assert TrustedServer(address, Path("ca.pem")).address == address


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", ":8443", "localhost:x", "a:70000", "https://a:1", "me@a:1", "a:1/b"]
)
def test_another_address_is_refused(address: str) -> None:
    with pytest.raises(TransportError, match=r"--server: .*AGFL-TRANSPORT-003") as caught:
        TrustedServer(address, Path("ca.pem"))
    assert repr(address) in str(caught.value)


def test_a_missing_ca_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"--ca: .*ca\.pem: .*AGFL-IDENTITY-040"):
        TrustedServer("localhost:1", tmp_path / "ca.pem").tls()


def test_a_ca_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(IdentityError, match=r"--ca: .*ca\.pem: .*AGFL-IDENTITY-041"):
        TrustedServer("localhost:1", tmp_path / "ca.pem").tls()


def test_a_certificate_error_is_found_below_other_errors() -> None:
    cause = ssl.SSLCertVerificationError()
    cause.verify_message = "Hostname mismatch, certificate is not valid for 'x'."
    error = ConnectionError("outer")
    error.__cause__ = cause
    with pytest.raises(
        IdentityError, match=r"--server: the certificate of x:1 is not valid .*Hostname mismatch.*AGFL-IDENTITY-043"
    ):
        TrustedServer("x:1", Path("ca.pem")).raise_if_hopeless(error)
    TrustedServer("x:1", Path("ca.pem")).raise_if_hopeless(ConnectionRefusedError())
