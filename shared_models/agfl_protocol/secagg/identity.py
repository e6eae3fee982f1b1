"""Who may sign: the pinned roster of Ed25519 keys (RFC 8032), and signatures with a label for every kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agfl_models.errors import IdentityError
from agfl_protocol.identity.identity import check_name
from agfl_protocol.secagg.context import Part, digest, frame
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.points import ed25519_problem

SIGN_KEYS, SIGN_AGREEMENT = "sign/keys", "sign/agreement"  # one label for each kind of signature
SIGNATURE_BYTES = 64


def sign(key: Ed25519PrivateKey, label: str, *parts: Part) -> bytes:
    """Return the signature (64 bytes) over the framed parts."""
    return key.sign(frame(label, *parts))


@dataclass(frozen=True)
class SigningRoster:
    """NAME -> Ed25519 key of every owner, as the owners exchanged them; the server can neither add nor replace one.

    Raises:
        IdentityError: a name breaks its rule, two names have one key, or a key is none that an honest owner can have.
    """

    keys: Mapping[str, Ed25519PublicKey]

    def __post_init__(self) -> None:
        holders: dict[bytes, str] = {}
        for name, key in sorted(self.keys.items()):
            check_name(name)
            problem = ed25519_problem(key.public_bytes_raw())
            if problem is not None:
                raise IdentityError("AGFL-IDENTITY-026", f"owners.{name}: Ed25519 public key: {problem}")
            holder = holders.setdefault(key.public_bytes_raw(), name)
            if holder != name:
                raise IdentityError(
                    "AGFL-IDENTITY-027", f"roster: must hold one key a name, {holder!r} and {name!r} have the same"
                )

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 over names and keys, sorted by name."""
        items = sorted(self.keys.items())
        return digest("roster", *(part for name, key in items for part in (name, key.public_bytes_raw())))

    def verify(self, name: str, signature: bytes, label: str, *parts: Part) -> None:
        """Check that `name` signed the framed parts.

        Raises:
            ProtocolViolation: the roster does not hold the name, or its key did not make this signature.
        """
        key = self.keys.get(name)
        if key is None:
            raise ProtocolViolation("AGFL-SECURE-004", f"roster: must hold every member, got {name!r}")
        if not _is_signed(key.public_bytes_raw(), signature, frame(label, *parts)):
            raise ProtocolViolation(
                "AGFL-SECURE-005", f"signature: must be that of {name!r} over this exchange ({label}); it is not"
            )


@lru_cache(maxsize=2**14)  # the nodes of one process check each other's signatures, the same n of n owners n times
def _is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True
