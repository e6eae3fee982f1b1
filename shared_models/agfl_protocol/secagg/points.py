"""Public keys that are no honest key: refused where they enter, since OpenSSL takes all but a few of them.

Ed25519 (RFC 8032, 5.1.3): a canonical encoding of a point of the curve, not of small order. Under the neutral element
one signature of 64 bytes holds for every message, under a point of order 2, 4 or 8 for every second, fourth or
eighth. A point of mixed order passes: only who has its secret signs under it, and its cost would be tenfold. X25519
(RFC 7748, 5): u below p, no point of small order. RFC 7748 has a receiver reduce u and drop its highest bit, so one
key would have two forms, and "no key twice" would not see it. All input is public, so nothing here hides how long it
takes.
"""

from __future__ import annotations

from functools import lru_cache

KEY_BYTES = 32
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_MINUS_ONE = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int]  # X, Y, Z with x = X/Z, y = Y/Z

# u of order 1, 2, 4 and 8 on the curve and on its twist, below p: https://cr.yp.to/ecdh.html#validate
X25519_LOW_ORDER = frozenset(
    (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
    )
)


@lru_cache(maxsize=4096)
def ed25519_problem(key: bytes) -> str | None:
    """Return the rule that a public key breaks, or None for one that an honest owner can have."""
    assert len(key) == KEY_BYTES
    y, sign = int.from_bytes(key, "little") & (2**255 - 1), key[31] >> 7
    if y >= _P:
        return f"y must be below 2^255 - 19, got {y:#x}"
    x = _recover_x(y, sign)
    if x is None:
        return "must be a point of the curve"
    point: _Point = (x, y, 1)
    for _ in range(3):
        point = _double(point)
    if point[0] == 0 and point[1] == point[2]:  # 8 times the point is the neutral element
        return "must not be a point of small order, under which anybody can sign"
    return None


def x25519_problem(key: bytes) -> str | None:
    """Return the rule that a public key breaks, or None for one that an honest client can have."""
    assert len(key) == KEY_BYTES
    u = int.from_bytes(key, "little")
    if u >= _P:
        return "u must be below 2^255 - 19"
    if u in X25519_LOW_ORDER:
        return "must be a point of full order"
    return None


def _recover_x(y: int, sign: int) -> int | None:
    """RFC 8032, 5.1.3, steps 2 to 4."""
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if (v * x * x - u) % _P != 0:
        x = x * _SQRT_MINUS_ONE % _P
    if (v * x * x - u) % _P != 0 or (x == 0 and sign == 1):
        return None
    return x if x & 1 == sign else _P - x


def _double(point: _Point) -> _Point:
    """RFC 8032, 5.1.4."""
    x, y, z = point
    a, b, c = x * x, y * y, 2 * z * z
    h, g = a + b, a - b
    e, f = h - (x + y) ** 2, c + g
    return e * f % _P, g * h % _P, f * g % _P
