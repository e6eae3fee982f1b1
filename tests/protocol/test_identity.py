"""The public file: what is written is read back, and whatever else is refused by field, rule and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agfl_models.errors import IdentityError
from agfl_protocol.identity.identity import PublicIdentity, check_name, name_hint

TRANSPORT, SIGNING = generate_private_key(SECP384R1()).public_key(), Ed25519PrivateKey.generate().public_key()
ALICE = PublicIdentity.of("alice", TRANSPORT, SIGNING)


# YAML reads each of the last four as something other than text unless it is quoted.
@pytest.mark.parametrize("name", ["alice", "A.b-c_9", "x" * 64, "123", "1e5", "null", "yes"])
def test_a_public_file_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    identity = PublicIdentity.of(name, TRANSPORT, SIGNING)
    path = tmp_path / "file.pub"
    path.write_text(identity.format())
    assert PublicIdentity.read(path) == identity
    assert identity.transport_public_key == TRANSPORT
    assert identity.signing_public_key == SIGNING


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "-a", "a/b", "a\n", "ä", "x" * 65])
def test_a_name_that_breaks_the_rule_is_refused(name: str) -> None:
    with pytest.raises(IdentityError, match=r"name: .*AGFL-IDENTITY-006") as caught:
        check_name(name)
    assert repr(name) in str(caught.value)


def _p256_line() -> str:
    key = generate_private_key(SECP256R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


BROKEN = [
    ("version: 1", "version: 2", "version: must be 1, got 2"),
    ('name: "alice"', "name: 7", "name: must be text in quotes, got 7"),
    ('name: "alice"', 'name: "al ice"', "name: must match"),
    ('name: "alice"\n', "", "must hold exactly the fields version, name, transport_key, signing_key, got"),
    ("version: 1", "version: 1\nextra: 1", "must hold exactly the fields"),
    ("version: 1", "version: [1", "malformed YAML"),
    ("version: 1", "version: 1\nversion: 1", "'version' stands twice in one mapping"),
    (ALICE.transport_key, ALICE.signing_key, "transport_key: must be an EC P-384 public key"),
    (ALICE.transport_key, _p256_line(), "transport_key: must be an EC P-384 public key"),
    (ALICE.transport_key, ALICE.transport_key + " me@home", "without comment, got 'ecdsa-sha2-nistp384"),
    (ALICE.signing_key, ALICE.transport_key, "signing_key: must be an Ed25519 public key"),
    (ALICE.signing_key, "ssh-ed25519 AAAA", "signing_key: must be an Ed25519 public key"),
    (ALICE.signing_key, "hello", "got 'hello'"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN, ids=range(len(BROKEN)))
def test_a_public_file_that_breaks_a_rule_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = ALICE.format()
    assert old in text
    path = tmp_path / "alice.pub"
    path.write_text(text.replace(old, new))
    with pytest.raises(IdentityError) as caught:
        PublicIdentity.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- 1", b"x" * 5000])
def test_what_is_no_public_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "alice.pub"
    path.write_bytes(content)
    with pytest.raises(IdentityError, match=str(path)):
        PublicIdentity.read(path)


def test_a_long_public_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "alice.pub"
    path.write_text(ALICE.format() + "#" * 5000)
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-014"):
        PublicIdentity.read(path)


def test_a_missing_public_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"nobody\.pub: .*AGFL-IDENTITY-012"):
        PublicIdentity.read(tmp_path / "nobody.pub")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Zoë Müller", " (Zoe-Muller would do)"), ("a b", " (a-b would do)"), ("  x_1.", " (x_1 would do)"), ("Зоя", "")],
)
def test_a_name_that_does_not_hold_is_answered_with_the_nearest(name: str, hint: str) -> None:
    assert name_hint(name) == hint
