"""An owner's keys: private from the first moment, never overwritten, and refused when they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agfl_client import keys
from agfl_models.errors import IdentityError
from agfl_protocol.identity.identity import PublicIdentity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.generate("alice", tmp_path / "alice")
    return tmp_path / "alice"


def test_generated_keys_are_private_and_load(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        "alice.pub",
        "sampling.key",
        "signing.key",
        "transport.key",
    ]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    own = keys.load(folder)
    assert own.name == "alice"
    assert own.identity == PublicIdentity.read(folder / "alice.pub")
    assert own.identity == PublicIdentity.of("alice", own.transport.public_key(), own.signing.public_key())


def test_two_generations_share_no_key(folder: Path, tmp_path: Path) -> None:
    keys.generate("alice", tmp_path / "again")
    one, other = keys.load(folder).identity, keys.load(tmp_path / "again").identity
    assert one.transport_key != other.transport_key
    assert one.signing_key != other.signing_key
    assert keys.load(folder).sampling != keys.load(tmp_path / "again").sampling


def test_keys_are_not_shown(folder: Path) -> None:
    own = keys.load(folder)
    encoding = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert "PrivateKey" not in repr(own)
    for key in (own.transport, own.signing):
        assert key.private_bytes(*encoding).decode() not in repr(own)
    assert str(own.sampling.secret)[2:-1] not in repr(own)
    assert "secret" not in repr(own)


def test_existing_keys_are_never_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-019"):
        keys.generate("alice", folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_bad_name_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"name: must match .* got '\.\./x'.*AGFL-IDENTITY-006"):
        keys.generate("../x", tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", "transport.key", "signing.key", "sampling.key", "alice.pub"])
@pytest.mark.parametrize("mode", [0o040, 0o004])
def test_a_folder_or_file_open_to_others_is_refused(name: str, mode: int, folder: Path) -> None:
    path = folder / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-018"):
        keys.load(folder)


@pytest.mark.parametrize("name", ["transport.key", "signing.key", "alice.pub"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(IdentityError, match=r"no such file|must hold exactly one public file"):
        keys.load(folder)


def test_a_folder_of_before_gets_a_sampling_key_once(folder: Path) -> None:
    (folder / "sampling.key").unlink()
    own = keys.load(folder)
    assert (folder / "sampling.key").stat().st_mode & 0o777 == 0o600
    assert keys.load(folder).sampling == own.sampling


def test_a_sampling_key_that_was_cut_short_is_refused(folder: Path) -> None:
    (folder / "sampling.key").write_bytes(b"short")
    with pytest.raises(IdentityError, match=r"sampling\.key: .*got 5.*AGFL-IDENTITY-036"):
        keys.load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"nowhere: .*AGFL-IDENTITY-017"):
        keys.load(tmp_path / "nowhere")


def test_two_public_files_are_refused(folder: Path) -> None:
    shutil.copy(folder / "alice.pub", folder / "bob.pub")
    with pytest.raises(IdentityError, match=r"got \['alice\.pub', 'bob\.pub'\].*AGFL-IDENTITY-032"):
        keys.load(folder)


def test_a_public_file_of_other_keys_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(keys.generate("alice", tmp_path / "other"), folder / "alice.pub")
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-028"):
        keys.load(folder)


@pytest.mark.parametrize(
    ("name", "other", "rule"),
    [
        ("transport.key", "signing.key", "AGFL-IDENTITY-033"),
        ("signing.key", "transport.key", "AGFL-IDENTITY-034"),
        ("signing.key", "alice.pub", "AGFL-IDENTITY-037"),
    ],
)
def test_a_wrong_key_file_is_refused_without_quoting_it(name: str, other: str, rule: str, folder: Path) -> None:
    shutil.copy(folder / other, folder / name)
    with pytest.raises(IdentityError, match=rule) as caught:
        keys.load(folder)
    assert str(folder / name) in str(caught.value)
    assert (folder / other).read_text().splitlines()[1] not in str(caught.value)


def test_keys_serve_one_node_at_a_time(folder: Path) -> None:
    with (
        keys.hold(folder),
        pytest.raises(IdentityError, match="AGFL-IDENTITY-029"),
        keys.hold(folder),
    ):
        pass
    with keys.hold(folder):
        pass


def test_missing_keys_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"nowhere: .*AGFL-IDENTITY-017"), keys.hold(tmp_path / "nowhere"):
        pass
