"""Who a node is: a name, a key that opens the transport, and a key that signs for the other nodes.

The owner keeps the private halves; the public file NAME.pub goes to the operator, who registers it:

    version: 1
    name: "alice"
    transport_key: "ecdsa-sha2-nistp384 AAAA..."   # EC P-384, checked by the server on every request
    signing_key: "ssh-ed25519 AAAA..."             # Ed25519, checked by the other nodes in secure aggregation
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from agfl_models.bounded import read_at_most, shown
from agfl_models.errors import IdentityError
from agfl_models.validation import load_yaml
from agfl_protocol.secagg.points import ed25519_problem

# The only application that our nodes answer. No code travels under this id: both sides run what is installed.
MARKER_FAB_ID = "agfl/agfl-marker"

PUBLIC_FILE_VERSION = 1
NAME_RULE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_FIELDS = ("version", "name", "transport_key", "signing_key")
_MAX_FILE_BYTES = 4096  # read before anything is trusted, so YAML gets no room for tricks


def check_name(name: str) -> None:
    """Check that `name` may name a node; it is also a file name.

    Raises:
        IdentityError: it breaks NAME_RULE.
    """
    if re.fullmatch(NAME_RULE, name) is None:
        raise IdentityError("AGFL-IDENTITY-006", f"name: must match {NAME_RULE}, got {shown(name)}{name_hint(name)}")


def name_hint(name: str) -> str:
    """Return " (NAME would do)": the nearest name that holds, of an owner whose own has accents or spaces."""
    plain = unicodedata.normalize("NFKD", name[:64]).encode("ascii", "ignore").decode("ascii")
    nearest = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    return f" ({nearest} would do)" if re.fullmatch(NAME_RULE, nearest) else ""


@dataclass(frozen=True)
class PublicIdentity:
    """The public half of a node's identity; both keys as OpenSSH lines without a comment.

    Raises:
        IdentityError: a field breaks its rule.
    """

    name: str
    transport_key: str
    signing_key: str

    def __post_init__(self) -> None:
        check_name(self.name)
        _ = self.transport_public_key, self.signing_public_key

    @property
    def transport_public_key(self) -> EllipticCurvePublicKey:
        """The key that the server checks on every request."""
        key = _parse_key(self.transport_key)
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise _not_a_key("transport_key", "EC P-384", self.transport_key)
        return key

    @property
    def signing_public_key(self) -> Ed25519PublicKey:
        """The key that the other nodes check."""
        key = _parse_key(self.signing_key)
        if not isinstance(key, Ed25519PublicKey):
            raise _not_a_key("signing_key", "Ed25519", self.signing_key)
        problem = ed25519_problem(key.public_bytes_raw())
        if problem is not None:
            raise IdentityError("AGFL-IDENTITY-007", f"signing_key: Ed25519 public key: {problem}")
        return key

    def format(self) -> str:
        """Return the content of the public file."""
        fields = (PUBLIC_FILE_VERSION, self.name, self.transport_key, self.signing_key)
        # A JSON string is YAML too, and stays a string for names like 123 or null.
        return "".join(f"{key}: {json.dumps(value)}\n" for key, value in zip(_FIELDS, fields, strict=True))

    @classmethod
    def of(cls, name: str, transport: EllipticCurvePublicKey, signing: Ed25519PublicKey) -> PublicIdentity:
        """Return the identity that these two keys make."""
        return cls(name, format_key(transport), format_key(signing))

    @classmethod
    def parse(cls, text: str, source: str) -> PublicIdentity:
        """Return the identity in the text of a public file; `source` starts the error line.

        Raises:
            IdentityError: names the source, the field, the rule and the value.
        """
        try:
            content = load_yaml(text)
        except yaml.YAMLError as error:
            raise IdentityError(
                "AGFL-IDENTITY-008", f"{source}: malformed YAML: {' '.join(str(error).split())}"
            ) from None
        if not isinstance(content, dict) or set(content) != set(_FIELDS):
            found = shown(sorted(map(str, content))) if isinstance(content, dict) else type(content).__name__
            raise IdentityError(
                "AGFL-IDENTITY-009", f"{source}: must hold exactly the fields {', '.join(_FIELDS)}, got {found}"
            )
        if content["version"] != PUBLIC_FILE_VERSION:
            raise IdentityError(
                "AGFL-IDENTITY-010",
                f"{source}: version: must be {PUBLIC_FILE_VERSION}, got {shown(content['version'])}",
            )
        for field in _FIELDS[1:]:
            if not isinstance(content[field], str):
                raise IdentityError(
                    "AGFL-IDENTITY-011", f"{source}: {field}: must be text in quotes, got {shown(content[field])}"
                )
        try:
            return cls(content["name"], content["transport_key"], content["signing_key"])
        except IdentityError as error:
            raise IdentityError.of(error, f"{source}: {error.sentence}") from None

    @classmethod
    def read(cls, path: Path) -> PublicIdentity:
        """Read a public file.

        Raises:
            IdentityError: the file is missing or unreadable, or as `parse`.
        """
        try:
            content = read_at_most(path, _MAX_FILE_BYTES)
            text = None if content is None else content.decode("utf-8")
        except FileNotFoundError:
            raise IdentityError("AGFL-IDENTITY-012", f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise IdentityError("AGFL-IDENTITY-013", f"{path}: cannot be read: {error}") from None
        if text is None:
            raise IdentityError(
                "AGFL-IDENTITY-014", f"{path}: must be a public file of at most {_MAX_FILE_BYTES} bytes"
            )
        return cls.parse(text, str(path))


def format_key(key: EllipticCurvePublicKey | Ed25519PublicKey) -> str:
    """Return a public key as an OpenSSH line without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def _parse_key(line: str) -> object:
    """Return the key, or None: also for a comment or another encoding, which would hide a key used twice."""
    try:
        key = load_ssh_public_key(line.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii") == line else None


def _not_a_key(field: str, kind: str, line: str) -> IdentityError:
    return IdentityError(
        "AGFL-IDENTITY-015",
        f"{field}: must be an {kind} public key as one OpenSSH line without comment, got {shown(line)}",
    )
