"""What a simulated owner draws for a secure sum, so that the worker that follows a dead one draws it again."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agfl_protocol.secagg.context import frame
from agfl_protocol.secagg.draws import Draws

SECRET_BYTES = 32


class RepeatedDraws(Draws):
    """Draws that follow from a secret, which the driver draws anew for each exchange and drops after it.

    It is none of the client's: a deployed node has nothing but the operating system to draw from.
    """

    def __init__(self) -> None:
        self._secret, self._count = b"", 0

    def begin(self, secret: bytes) -> None:
        """Draw from here on as whoever began with this secret."""
        assert len(secret) == SECRET_BYTES
        self._secret, self._count = secret, 0

    def below(self, bound: int) -> int:
        """As of `Draws`; the bias is below 2^-256 for the bounds of a secure sum."""
        assert bound <= 2**256
        return int.from_bytes(self._block("high") + self._block("low"), "big") % bound

    def channel_key(self) -> X25519PrivateKey:
        """As of `Draws`."""
        return X25519PrivateKey.from_private_bytes(self._block("key"))

    def _block(self, purpose: str) -> bytes:
        assert self._secret, "a round begins with a secret"
        self._count += 1
        return hmac.digest(self._secret, frame("simulated-draw", purpose, self._count), "sha256")
