"""Where the secrets of an exchange are drawn from."""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


class Draws:
    """The operating system's randomness."""

    def below(self, bound: int) -> int:
        """Return a uniform number of [0, bound)."""
        return secrets.randbelow(bound)

    def channel_key(self) -> X25519PrivateKey:
        """Return a fresh key pair."""
        return X25519PrivateKey.generate()


OS_DRAWS = Draws()
