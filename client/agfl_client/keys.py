"""An owner's keys: a private folder with transport.key, signing.key, sampling.key, and NAME.pub for the operator.

sampling.key is the secret from which the owner draws its batches: 32 bytes, which nobody else ever learns.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from agfl_models.errors import IdentityError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.folder_kinds import folder_hint
from agfl_protocol.folder_lock import held
from agfl_protocol.identity.identity import PublicIdentity, check_name
from agfl_protocol.identity.private_files import check_private, new_folder, read_private, write_private
from agfl_protocol.randomness import SECRET_BYTES, OwnerRandomness

TRANSPORT_FILE, SIGNING_FILE, SAMPLING_FILE = "transport.key", "signing.key", "sampling.key"


@dataclass(frozen=True)
class NodeKeys:
    """A node's identity with its private keys, which are never shown."""

    identity: PublicIdentity
    transport: EllipticCurvePrivateKey = field(repr=False)
    signing: Ed25519PrivateKey = field(repr=False)
    sampling: OwnerRandomness = field(repr=False)

    @property
    def name(self) -> str:
        """The node's name."""
        return self.identity.name


def generate(name: str, folder: Path) -> Path:
    """Make a new identity in `folder` (mode 0700, its files 0600); return the path of its public file.

    Raises:
        IdentityError: the name breaks its rule, or the folder is not empty: keys are never overwritten.
    """
    check_name(name)
    transport, signing = generate_private_key(SECP384R1()), Ed25519PrivateKey.generate()
    identity = PublicIdentity.of(name, transport.public_key(), signing.public_key())
    public_file = f"{name}.pub"
    with new_folder(folder) as new:
        write_private(new / TRANSPORT_FILE, _to_pem(transport))
        write_private(new / SIGNING_FILE, _to_pem(signing))
        write_private(new / SAMPLING_FILE, secrets.token_bytes(SECRET_BYTES))
        write_private(new / public_file, identity.format().encode())
    return folder / public_file


def load(folder: Path) -> NodeKeys:
    """Read what `generate` made; a folder of before there was a sampling.key gets one.

    Raises:
        IdentityError: a file is missing, malformed, open to group or others, or does not fit the others.
    """
    public_file = _public_file(folder)
    check_private(public_file)
    identity = PublicIdentity.read(public_file)
    transport, signing = folder / TRANSPORT_FILE, folder / SIGNING_FILE
    keys = NodeKeys(identity, _read_transport(transport), _read_signing(signing), _read_sampling(folder))
    if PublicIdentity.of(identity.name, keys.transport.public_key(), keys.signing.public_key()) != identity:
        raise IdentityError(
            "AGFL-IDENTITY-028", f"{public_file}: must hold the public halves of {transport} and {signing}"
        )
    return keys


def name_in(folder: Path) -> str:
    """Return whose keys a folder holds; raises IdentityError as `load`."""
    return _public_file(folder).stem


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a second node on this machine from answering under the same keys; freed even by kill -9.

    Raises:
        IdentityError: another process holds the keys, or the folder is missing or open to others.
    """
    _refuse_other_folder(folder)
    check_private(folder)
    refusal = IdentityError(
        "AGFL-IDENTITY-029", f"{folder}: keys: must serve one node at a time, and one is running already"
    )
    needed = IdentityError(
        "AGFL-IDENTITY-030", f"{folder}: keys: must lie on a file system with locks, or two nodes may answer at once"
    )
    with held(folder, refusal, without=needed):
        yield


def _refuse_other_folder(folder: Path) -> None:
    if not (folder / TRANSPORT_FILE).exists() and (hint := folder_hint(folder)):
        raise IdentityError(
            "AGFL-IDENTITY-031", f"--keys: {folder}: must be an owner's folder of agfl-client keygen{hint}"
        )


def _public_file(folder: Path) -> Path:
    _refuse_other_folder(folder)
    check_private(folder)
    public_files = sorted(folder.glob("*.pub"))
    if len(public_files) != 1:
        found = [path.name for path in public_files] or "none"
        raise IdentityError("AGFL-IDENTITY-032", f"{folder}: must hold exactly one public file NAME.pub, got {found}")
    return public_files[0]


def _to_pem(key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_transport(path: Path) -> EllipticCurvePrivateKey:
    key = _read_key(path)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise IdentityError("AGFL-IDENTITY-033", f"{path}: must hold an EC P-384 private key, got {type(key).__name__}")
    return key


def _read_signing(path: Path) -> Ed25519PrivateKey:
    key = _read_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError("AGFL-IDENTITY-034", f"{path}: must hold an Ed25519 private key, got {type(key).__name__}")
    return key


def _read_sampling(folder: Path) -> OwnerRandomness:
    path = folder / SAMPLING_FILE
    if not path.exists():
        try:
            write_atomically(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        except OSError as error:
            raise IdentityError("AGFL-IDENTITY-035", f"{path}: cannot be written: {error.strerror}") from None
    secret = read_private(path)
    if len(secret) != SECRET_BYTES:
        raise IdentityError("AGFL-IDENTITY-036", f"{path}: must hold {SECRET_BYTES} bytes, got {len(secret)}")
    return OwnerRandomness(secret)


def _read_key(path: Path) -> object:
    try:
        return load_pem_private_key(read_private(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own text is left out: it may quote what it could not read.
        raise IdentityError("AGFL-IDENTITY-037", f"{path}: must hold an unencrypted PEM private key (PKCS8)") from None
