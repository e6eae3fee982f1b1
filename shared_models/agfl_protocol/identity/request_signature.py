"""What a node signs of each request to the server: method, path, time, a nonce and the body, all in one header.

The server reads it before the body, and takes each signature once, so that whoever records a request can neither repeat
nor change it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SIGNATURE_HEADER = "agfl-signature"
NAME_HEADER = "agfl-name"  # for a line in the operator's log, of a node that is not admitted; nobody relies on it
MAX_CLOCK_DIFFERENCE_S = 300
NONCE_BYTES = 16
_ALGORITHM = ECDSA(SHA384())
_LABEL = "agfl request 1"
_FORM = re.compile(r"1 ([0-9a-f]{64}) ([0-9]{1,20}) ([0-9a-f]{32}) ([0-9a-f]{64}) ([A-Za-z0-9+/]{90,140}={0,2})")


@dataclass(frozen=True)
class RequestSignature:
    """The header's content. key_id names the node's transport key; time_ns is the node's clock, since 1970."""

    key_id: str
    time_ns: int
    nonce: bytes
    body_hash: bytes
    signature: bytes

    @property
    def nonce_and_time(self) -> int:
        """One number for each signature of a key, ordered by time."""
        return self.time_ns << (8 * NONCE_BYTES) | int.from_bytes(self.nonce, "big")

    def is_valid(self, key: EllipticCurvePublicKey, method: str, path: str) -> bool:
        """Return whether `key` signed a request of this method and path, with this time, nonce and body."""
        try:
            key.verify(self.signature, _signed(method, path, self.time_ns, self.nonce, self.body_hash), _ALGORITHM)
        except InvalidSignature:
            return False
        return True

    @staticmethod
    def parse(text: str) -> RequestSignature | None:
        """Return what the header says, or None where it is not of the one form."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        key_id, time_ns, nonce, body_hash, signature = found.groups()
        try:
            signed = base64.b64decode(signature, validate=True)
        except ValueError:
            return None
        return RequestSignature(key_id, int(time_ns), bytes.fromhex(nonce), bytes.fromhex(body_hash), signed)


def key_id(key: EllipticCurvePublicKey) -> str:
    """Return the name of a transport key in headers: SHA-256, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def short_id(key_id: str) -> str:
    """Return what people see of a key's name: 64 bits, enough to tell which node a line is about."""
    return " ".join(key_id[i : i + 4] for i in range(0, 16, 4))


def sign_request(key: EllipticCurvePrivateKey, method: str, path: str, body: bytes, time_ns: int, nonce: bytes) -> str:
    """Return the header's value; `nonce` must be fresh from the operating system."""
    body_hash = hashlib.sha256(body).digest()
    signature = key.sign(_signed(method, path, time_ns, nonce, body_hash), _ALGORITHM)
    fields = ("1", key_id(key.public_key()), str(time_ns), nonce.hex(), body_hash.hex())
    return " ".join((*fields, base64.b64encode(signature).decode("ascii")))


def _signed(method: str, path: str, time_ns: int, nonce: bytes, body_hash: bytes) -> bytes:
    return "\n".join((_LABEL, method, path, str(time_ns), nonce.hex(), body_hash.hex())).encode("utf-8")
