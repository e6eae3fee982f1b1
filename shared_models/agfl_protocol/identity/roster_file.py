"""The roster file: NAME -> signing key of every owner. Owners get it out of band, never through the server.

version: 1
owners:
  "alice": "ssh-ed25519 AAAA..."
  "bob": "ssh-ed25519 AAAA..."
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from agfl_models.bounded import MAX_SHOWN, shown
from agfl_models.errors import ConfigError, IdentityError
from agfl_models.files.durable_files import write_atomically
from agfl_models.validation import read_yaml
from agfl_protocol.identity.identity import PublicIdentity
from agfl_protocol.secagg.identity import SigningRoster

_VERSION = 1
_MAX_FILE_BYTES = 2 << 20  # ten thousand owners


def format_roster(identities: Iterable[PublicIdentity]) -> str:
    """Return the content of the roster file of these nodes."""
    lines = [f"  {json.dumps(node.name)}: {json.dumps(node.signing_key)}\n" for node in identities]
    return f"version: {_VERSION}\nowners:\n" + "".join(sorted(lines))


def write_roster(path: Path, identities: Iterable[PublicIdentity]) -> None:
    """Write the roster file of these nodes, in place of an older one if there is one.

    Raises:
        IdentityError: there is no node yet, or two have one signing key; what is at the path is no roster, and would be
            lost; or it cannot be written.
    """
    nodes = list(identities)
    if not roster_of(nodes):
        raise IdentityError("AGFL-IDENTITY-021", "roster: must hold at least one owner, no node is admitted yet")
    try:
        if path.exists():
            read_roster(path)
    except IdentityError as error:
        raise IdentityError(
            "AGFL-IDENTITY-022",
            f"{path}: must be a new file or a roster, since nothing else is replaced; {error.sentence}",
        ) from None
    try:
        write_atomically(path, format_roster(nodes).encode())
    except OSError as error:
        raise IdentityError("AGFL-IDENTITY-023", f"{path}: cannot be written: {error.strerror}") from None


def roster_of(identities: Iterable[PublicIdentity]) -> SigningRoster:
    """Return the roster of these nodes; raises IdentityError where two of them share a signing key."""
    return SigningRoster({node.name: node.signing_public_key for node in identities})


def read_roster(path: Path) -> SigningRoster:
    """Read a roster file.

    Raises:
        IdentityError: names the file, the field, the rule and the value.
    """
    try:
        content = read_yaml(path, max_bytes=_MAX_FILE_BYTES)
    except ConfigError as error:
        raise IdentityError.of(error, f"--roster: {error.sentence}") from None
    owners = content.get("owners")
    if content.get("version") != _VERSION or not isinstance(owners, dict) or set(content) != {"version", "owners"}:
        raise IdentityError(
            "AGFL-IDENTITY-024",
            f"--roster: {path}: must hold version: {_VERSION} and owners, got {shown(sorted(map(str, content)))}",
        )
    try:
        return SigningRoster({str(name): _signing_key(str(name), line) for name, line in owners.items()})
    except IdentityError as error:
        raise IdentityError.of(error, f"--roster: {path}: {error.sentence}") from None


def _signing_key(name: str, line: object) -> Ed25519PublicKey:
    try:
        key = load_ssh_public_key(line.encode()) if isinstance(line, str) else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError(
            "AGFL-IDENTITY-025",
            f"owners.{name[:MAX_SHOWN]}: must be an Ed25519 public key as an OpenSSH line, got {shown(line)}",
        )
    return key
