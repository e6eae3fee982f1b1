"""The federation folder: certificates that a strict client accepts, and nodes that cannot be confused."""

from __future__ import annotations

import ipaddress
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from agfl_client import keys
from agfl_models.errors import IdentityError
from agfl_server.federation import federation_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    federation_folder.init(tmp_path / "federation", "seed: 0\n", ["fed.example.org", "10.1.2.3"])
    return tmp_path / "federation"


def _new_identity(name: str, tmp_path: Path) -> Path:
    return keys.generate(name, tmp_path / f"keys-{name}")


def test_init_makes_the_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "ca.pem", "config.yaml", "nodes", "server.key", "server.pem",
    ]  # fmt: skip
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    found = federation_folder.load(folder)
    assert found.config.read_text() == "seed: 0\n"
    assert found.nodes == ()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "fed.example.org", "10.1.2.3"])
def test_the_server_certificate_holds_for_each_host_under_the_strict_rules(host: str, folder: Path) -> None:
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    try:
        subject: x509.IPAddress | x509.DNSName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    verifier = PolicyBuilder().store(Store([ca])).build_server_verifier(subject)
    assert verifier.verify(server, []) == [server, ca]


def test_certificates_last_for_years(folder: Path) -> None:
    for name in ("ca.pem", "server.pem"):
        certificate = x509.load_pem_x509_certificate((folder / name).read_bytes())
        assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)
        assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=4 * 365)


def test_init_overwrites_nothing(folder: Path) -> None:
    before = (folder / "server.key").read_bytes()
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-052"):
        federation_folder.init(folder, "seed: 1\n", [])
    assert (folder / "server.key").read_bytes() == before


@pytest.mark.parametrize("host", ["", "a:8443", "https://a", "-a", "a_b", "a..b", "a" * 64])
def test_a_host_that_is_neither_name_nor_address_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"--host: .*AGFL-IDENTITY-051") as caught:
        federation_folder.init(tmp_path / "federation", "", [host])
    assert repr(host) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nodes_are_loaded_sorted_by_name(folder: Path, tmp_path: Path) -> None:
    for name in ("bob", "Carol", "alice"):
        federation_folder.add_node(folder, name, _new_identity(name, tmp_path))
    found = federation_folder.load(folder)
    assert [node.name for node in found.nodes] == ["Carol", "alice", "bob"]
    assert found.nodes[1] == keys.load(tmp_path / "keys-alice").identity


@pytest.mark.parametrize("again", ["alice", "ALICE"])
def test_a_taken_name_is_refused(again: str, folder: Path, tmp_path: Path) -> None:
    federation_folder.add_node(folder, "alice", _new_identity("alice", tmp_path))
    other = keys.generate(again, tmp_path / "other")
    with pytest.raises(
        IdentityError, match=rf"name: must not be taken, .* has 'alice' already, got '{again}'.*AGFL-IDENTITY-054"
    ):
        federation_folder.add_node(folder, again, other)
    assert len(federation_folder.load(folder).nodes) == 1


@pytest.mark.parametrize("field", ["transport_key", "signing_key"])
def test_a_key_of_another_node_is_refused(field: str, folder: Path, tmp_path: Path) -> None:
    alice, bob = _new_identity("alice", tmp_path), _new_identity("bob", tmp_path)
    federation_folder.add_node(folder, "alice", alice)
    stolen = next(line for line in alice.read_text().splitlines() if line.startswith(field))
    lines = [stolen if line.startswith(field) else line for line in bob.read_text().splitlines()]
    bob.write_text("\n".join(lines))
    with pytest.raises(IdentityError, match=rf"bob\.pub: {field}: .*got the key of 'alice'.*AGFL-IDENTITY-055"):
        federation_folder.add_node(folder, "bob", bob)


def test_a_public_file_that_names_someone_else_is_refused(folder: Path, tmp_path: Path) -> None:
    public_file = _new_identity("alice", tmp_path)
    with pytest.raises(IdentityError, match=r"alice\.pub: name: .*got 'alice'.*AGFL-IDENTITY-053"):
        federation_folder.add_node(folder, "bob", public_file)


def test_a_bad_name_is_refused_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"name: .*AGFL-IDENTITY-006"):
        federation_folder.add_node(folder, "../../etc", tmp_path / "nowhere")


def test_a_renamed_public_file_is_refused(folder: Path, tmp_path: Path) -> None:
    federation_folder.add_node(folder, "alice", _new_identity("alice", tmp_path))
    (folder / "nodes" / "alice.pub").rename(folder / "nodes" / "bob.pub")
    with pytest.raises(IdentityError, match=r"bob\.pub: name: .*got 'alice'.*AGFL-IDENTITY-060"):
        federation_folder.load(folder)


def test_what_a_crash_left_of_admitting_a_node_is_no_node(folder: Path, tmp_path: Path) -> None:
    (folder / "nodes" / ".writing-alice.pub").touch()
    assert federation_folder.load(folder).nodes == ()
    federation_folder.add_node(folder, "alice", _new_identity("alice", tmp_path))
    assert [path.name for path in (folder / "nodes").iterdir()] == ["alice.pub"]


def test_an_open_server_key_is_refused(folder: Path) -> None:
    (folder / "server.key").chmod(0o644)
    with pytest.raises(IdentityError, match=r"server\.key: .*AGFL-IDENTITY-018"):
        federation_folder.load(folder)


def test_a_folder_that_is_no_federation_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "nodes")
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-059"):
        federation_folder.load(folder)
