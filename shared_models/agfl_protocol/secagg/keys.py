"""Every key of an exchange: X25519 agreement, HKDF-SHA256 with a label for each use and the context as salt.

Sources: RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38D (AES-GCM). Each key encrypts once or masks once.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agfl_protocol.secagg.context import digest, frame
from agfl_protocol.secagg.errors import BadShares, require
from agfl_protocol.secagg.masks import SEED_BYTES
from agfl_protocol.secagg.points import x25519_problem

PUBLIC_KEY_BYTES, HASH_BYTES = 32, 32
SHARE_HASH_BYTES = 16
SEAL_BYTES = 16  # what AES-GCM adds, its tag
SHARE_KINDS = SELF_SHARE, MASK_SHARE = "share/self", "share/mask"
_NONCE = bytes(12)  # constant, since a channel key seals exactly one message


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of a mask secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, public: bytes, owner: str) -> bytes:
    """Return the X25519 shared secret (32 bytes) with the key that `owner` announced.

    Raises:
        ProtocolViolation: as `check_public_key`.
    """
    check_public_key(public, owner)
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def check_public_key(public: bytes, owner: str) -> None:
    """Check that `owner` announced a key that an honest client can have.

    Raises:
        ProtocolViolation: the point is of low order, so that the secret would be known to everybody; or the key is
            written in another form than the one that all others would compare.
    """
    problem = x25519_problem(public)
    require(problem is None, "AGFL-SECURE-006", f"public key of {owner!r}: {problem}; it is not")


def channel_key(shared: bytes, ctx1: bytes, sender: str, receiver: str) -> bytes:
    """Return the key (32 bytes) of the one message that `sender` seals for `receiver`."""
    return _derive(shared, ctx1, 32, "key/channel", sender, receiver)


def pair_seed(shared: bytes, ctx2: bytes, name: str, peer: str) -> bytes:
    """Return the seed of the mask that two clients share; the order of the names does not matter."""
    return _derive(shared, ctx2, SEED_BYTES, "mask/pair", min(name, peer), max(name, peer))


def self_seed(secret: bytes, ctx2: bytes, name: str) -> bytes:
    """Return the seed of the mask that `name` shares with nobody; `secret` is b of Bonawitz et al. 2017."""
    return _derive(secret, ctx2, SEED_BYTES, "mask/self", name)


def commitment(secret: bytes, ctx0: bytes, name: str) -> bytes:
    """Return the hash (32 bytes) by which `name` commits to its self-mask secret."""
    return digest("commitment", ctx0, name, secret)


def share_hash(kind: str, share: bytes, ctx1: bytes, dealer: str, holder: str) -> bytes:
    """Return the hash (16 bytes) by which a dealer commits to a share of one of SHARE_KINDS."""
    return digest(kind, ctx1, dealer, holder, share)[:SHARE_HASH_BYTES]


def seal(key: bytes, plaintext: bytes, ctx1: bytes, sender: str, receiver: str) -> bytes:
    """Encrypt for the holder of `key`; 16 bytes longer than the plaintext."""
    return AESGCM(key).encrypt(_NONCE, plaintext, frame("seal", ctx1, sender, receiver))


def open_sealed(key: bytes, sealed: bytes, ctx1: bytes, sender: str, receiver: str) -> bytes:
    """Decrypt what `sender` sealed.

    Raises:
        BadShares: another key, context, sender or receiver sealed it, or it was changed.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, frame("seal", ctx1, sender, receiver))
    except InvalidTag:
        rule = f"must open for {receiver!r} in this exchange; they do not"
        raise BadShares("AGFL-SECURE-007", "sealed shares", sender, rule) from None


def _derive(secret: bytes, context: bytes, size: int, label: str, *names: str) -> bytes:
    return HKDF(SHA256(), size, context, frame(label, *names)).derive(secret)
