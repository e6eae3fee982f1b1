"""The authority's key lies apart: who takes over a server's folder has no certificate for another host."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agfl_client.transport.server_trust import TrustedServer
from agfl_models.errors import IdentityError
from agfl_server.federation import authority, federation_folder
from agfl_server.federation.authority import Authority

EVIL = "evil.example.org"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    federation_folder.init(tmp_path / "federation", "seed: 0\n", ["fed.example.org"])
    return tmp_path / "federation"


def private_keys(folder: Path) -> Iterator[EllipticCurvePrivateKey]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except ValueError:
            continue
        assert isinstance(key, EllipticCurvePrivateKey)
        yield key


def accepts(ca: Path, chain: bytes, key: EllipticCurvePrivateKey, host: str, place: Path) -> bool:
    """Return whether an owner's client finishes the handshake with a server that shows this chain as `host`."""
    (place / "chain.pem").write_bytes(chain)
    (place / "chain.key").write_bytes(authority.to_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "chain.pem", place / "chain.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = TrustedServer(f"{host}:8443", ca).tls().wrap_bio(to_client, to_server, server_hostname=host)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    client.do_handshake()
    return True


def test_attack_a_stolen_server_folder_makes_certificates_for_other_hosts(folder: Path, tmp_path: Path) -> None:
    stolen = tmp_path / "stolen"
    shutil.copytree(folder, stolen)
    ca = x509.load_pem_x509_certificate((stolen / "ca.pem").read_bytes())
    keys = list(private_keys(stolen))
    assert keys, "the server has a key of its own"
    for key in keys:
        forged = Authority(ca, key).server_certificate(key.public_key(), [EVIL])
        assert not accepts(folder / "ca.pem", forged, key, EVIL, tmp_path)
        server = (stolen / "server.pem").read_bytes()
        below = Authority(x509.load_pem_x509_certificate(server), key).server_certificate(key.public_key(), [EVIL])
        assert not accepts(folder / "ca.pem", below + server, key, EVIL, tmp_path)


def test_the_authority_certifies_another_host(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "locked away"
    federation_folder.authority_folder(folder).rename(moved)
    key = generate_private_key(SECP384R1())
    certificate = Authority.read(moved).server_certificate(key.public_key(), ["new.example.org"])
    assert accepts(folder / "ca.pem", certificate, key, "new.example.org", tmp_path)
    assert not accepts(folder / "ca.pem", certificate, key, EVIL, tmp_path)
    assert federation_folder.load(folder).exposed_authority_key is None


def test_the_authoritys_folder_is_for_its_owner_only(folder: Path) -> None:
    apart = federation_folder.authority_folder(folder)
    assert apart == folder.with_name("federation-ca")
    assert {path.name: path.stat().st_mode & 0o777 for path in (apart, apart / "ca.key")} == {
        "federation-ca": 0o700,
        "ca.key": 0o600,
    }
    assert (apart / "ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()
    (apart / "ca.key").chmod(0o640)
    with pytest.raises(IdentityError, match=r"ca\.key: .*AGFL-IDENTITY-018"):
        Authority.read(apart)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("ca.key", b"hello", "AGFL-IDENTITY-049"),
        ("ca.pem", b"hello", "AGFL-IDENTITY-049"),
        ("ca.pem", None, "AGFL-IDENTITY-049"),
        ("ca.key", authority.to_pem(generate_private_key(SECP384R1())), "ca.key: .*AGFL-IDENTITY-050"),
    ],
)
def test_an_authority_that_does_not_hold_is_refused(name: str, content: bytes | None, rule: str, folder: Path) -> None:
    apart = federation_folder.authority_folder(folder)
    if content is None:
        (apart / name).unlink()
    else:
        (apart / name).write_bytes(content)
    with pytest.raises(IdentityError, match=rule):
        Authority.read(apart)


@pytest.mark.parametrize("taken", ["federation", "federation-ca"])
def test_init_makes_both_folders_or_none(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / taken / "notes").touch()
    with pytest.raises(IdentityError, match=rf"{taken}: .*AGFL-IDENTITY-052"):
        federation_folder.init(tmp_path / "federation", "", [])
    assert [path.name for path in tmp_path.iterdir()] == [taken]
