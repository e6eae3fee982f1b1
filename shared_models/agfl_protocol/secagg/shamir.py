"""Shamir secret sharing over the field of integers modulo 2^256 - 189 (Shamir 1979, CACM 22(11)).

Secrets and shares are 32 bytes, big-endian, canonical: below PRIME. Points are 1, 2, ..., n.
"""

from __future__ import annotations

from collections.abc import Sequence

from agfl_protocol.secagg.draws import OS_DRAWS, Draws
from agfl_protocol.secagg.errors import require

PRIME = 2**256 - 189
SHARE_BYTES = 32
MAX_POINT = 2**16


def random_secret(draws: Draws = OS_DRAWS) -> bytes:
    """Return a uniform field element."""
    return _to_bytes(draws.below(PRIME))


def split(secret: bytes, threshold: int, points: Sequence[int], draws: Draws = OS_DRAWS) -> list[bytes]:
    """Return one share for each of `points`: any `threshold` of them rebuild the secret, fewer say nothing.

    Raises:
        ProtocolViolation: the secret is not canonical, or the points are not distinct and in [1, 2^16).
    """
    _check_points(points)
    coefficients = [draws.below(PRIME) for _ in range(threshold - 1)]
    constant = _from_bytes(secret)
    shares = []
    for point in points:
        value = 0
        # Horner's rule; points are small, so reducing once at the end is cheaper than at each step.
        for coefficient in coefficients:
            value = (value + coefficient) * point
        shares.append(_to_bytes((value + constant) % PRIME))
    return shares


def weights(points: Sequence[int]) -> list[int]:
    """Return Lagrange's coefficients at zero: secret = sum of weight * share over `points`.

    Raises:
        ProtocolViolation: the points are not distinct and in [1, 2^16).
    """
    _check_points(points)
    product = 1
    for point in points:
        product *= point
    denominators = []
    for i in points:
        denominator = i
        for j in points:
            if j != i:
                denominator *= j - i
        denominators.append(denominator)
    return [product * pow(denominator, -1, PRIME) % PRIME for denominator in denominators]


def combine(shares: Sequence[bytes], factors: Sequence[int]) -> bytes:
    """Return the secret of `shares` with the `weights` of their points.

    Raises:
        ProtocolViolation: a share is not canonical.
    """
    terms = (factor * _from_bytes(share) for share, factor in zip(shares, factors, strict=True))
    return _to_bytes(sum(terms) % PRIME)


def is_canonical(element: bytes) -> bool:
    """Whether `element` is a field element: 32 bytes, below PRIME."""
    return len(element) == SHARE_BYTES and int.from_bytes(element, "big") < PRIME


def _check_points(points: Sequence[int]) -> None:
    """Raise ProtocolViolation unless `points` are distinct and in [1, 2^16)."""
    inside = all(0 < point < MAX_POINT for point in points)
    distinct = len(set(points)) == len(points)
    require(
        inside and distinct,
        "AGFL-SECURE-011",
        f"points: must be distinct and in [1, 2^16), got {str(list(points))[:80]}",
    )


def _from_bytes(element: bytes) -> int:
    """The line that this raises does not quote the element, which is a secret."""
    require(is_canonical(element), "AGFL-SECURE-012", "share: must be 32 bytes below 2^256 - 189; it is not")
    return int.from_bytes(element, "big")


def _to_bytes(number: int) -> bytes:
    return number.to_bytes(SHARE_BYTES, "big")
