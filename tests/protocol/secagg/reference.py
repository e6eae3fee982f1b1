"""Mode P a second time, straight from SPEC.md: four clients, fixed randomness, no import from the product.

Slow and plain on purpose: the ladder of RFC 7748, HKDF from HMAC, AES block by block. Only AES, GCM and Ed25519 are
pyca's. `python tests/protocol/secagg/reference.py > tests/vectors/secagg.json` makes the test vectors.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

P25519 = 2**255 - 19
FIELD = 2**256 - 189
WORD = 2**64


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5."""
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") & (1 << 255) - 1
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % P25519, c * b % P25519
        x3, z3 = (da + cb) ** 2 % P25519, u * (da - cb) ** 2 % P25519
        x2 = a * a * b * b % P25519
        e = a * a - b * b
        z2 = e * (a * a + 121665 * e) % P25519
    if swap:
        x2, z2 = x3, z3
    result: int = x2 * pow(z2, P25519 - 2, P25519) % P25519
    return result.to_bytes(32, "little")


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-256."""
    prk = hmac.new(salt, secret, hashlib.sha256).digest()
    out: bytes = b""
    block: bytes = b""
    for i in range(1, -(-size // 32) + 1):
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out += block
    return out[:size]


def frame(label: str, *parts: bytes | str | int) -> bytes:
    """SPEC.md, section 2."""
    out = b""
    for part in ("agfl/secagg/v1/" + label, *parts):
        data = struct.pack(">Q", part) if isinstance(part, int) else part.encode() if isinstance(part, str) else part
        out += struct.pack(">Q", len(data)) + data
    return out


def sha(label: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 of a frame."""
    return hashlib.sha256(frame(label, *parts)).digest()


def stream(seed: bytes, num_lanes: int) -> list[int]:
    """AES-256 in counter mode, read as little-endian words."""
    aes = Cipher(AES256(seed[:32]), ECB()).encryptor()
    first = int.from_bytes(seed[32:], "big")
    blocks = [aes.update(((first + i) % 2**128).to_bytes(16, "big")) for i in range(-(-num_lanes // 2))]
    return list(struct.unpack(f"<{2 * len(blocks)}Q", b"".join(blocks)))[:num_lanes]


def polynomial(secret: bytes, coefficients: list[int], x: int) -> bytes:
    """Evaluate with the highest coefficient first."""
    degree = len(coefficients)
    value: int = int.from_bytes(secret, "big") + sum(c * x ** (degree - i) for i, c in enumerate(coefficients))
    return (value % FIELD).to_bytes(32, "big")


def fixed(label: str, name: str, below: int = FIELD) -> int:
    """Randomness that is none."""
    return int.from_bytes(hashlib.sha256(f"vector/{label}/{name}".encode()).digest(), "big") % below


def fixed_bytes(label: str, name: str) -> bytes:
    """As `fixed`, 32 bytes."""
    return fixed(label, name).to_bytes(32, "big")


NAMES = ["alice", "bob", "carol", "dave"]
C, T, MIN_COHORT = 1, 2, 3
RINGS = 3  # of an elastic model, filled by each
NUM_LANES = 5
RUN_ID, ROUND, EXCHANGE, VERSION, MAX_COHORT, FIELDS = "run-7", 3, 5, 3, 10, 2
PLAN_HASH = "a5" * 32
CLIENT_PLAN = '{"num_rounds":3}'
MODEL = [0.5, -1.25, 3.0]
ARRAYS: dict[str, tuple[str, str, list[float]]] = {
    "scaffold/used": ("int64", "<2q", [0, 3]),
    "elastic/by_tier": ("uint8", "<3B", [1, 2, 3]),
    "scaffold/control": ("float32", "<3f", [0.25, 0.0, -8.0]),
}
MERGES, NUM_NEW = [97, 98, 259, 32], 1  # "ab", then "ab "
U2 = NAMES
U3 = ["alice", "bob", "dave"]  # carol's vector never came
LOW_ORDER = bytes(32)


def transcript() -> dict[str, Any]:
    """Return every value of one exchange, in hexadecimal."""
    out: dict[str, Any] = {"names": NAMES, "survivors": U3}
    signing = {n: Ed25519PrivateKey.from_private_bytes(fixed_bytes("signing", n)) for n in NAMES}
    public = {n: key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for n, key in signing.items()}
    roster = sha("roster", *(part for n in NAMES for part in (n, public[n])))
    model = hashlib.sha256(struct.pack("<3f", *MODEL)).digest()
    arrays: list[bytes | str] = []
    for name in sorted(ARRAYS):
        dtype, packed, numbers = ARRAYS[name]
        whole = [int(number) if dtype != "float32" else number for number in numbers]
        arrays += [name, dtype, hashlib.sha256(struct.pack(packed, *whole)).digest()]
    broadcast = sha("broadcast", PLAN_HASH, CLIENT_PLAN, 1, 0, 0, FIELDS, MAX_COHORT, model, len(ARRAYS), *arrays)
    plan_digest = hashlib.sha256(CLIENT_PLAN.encode()).hexdigest()
    ctx0 = sha("ctx0", VERSION, RUN_ID, ROUND, EXCHANGE, roster, plan_digest, broadcast)
    out |= {"roster": roster.hex(), "broadcast": broadcast.hex(), "ctx0": ctx0.hex()}
    merges = hashlib.sha256(struct.pack("<4I", *MERGES)).digest()
    counts = sha("broadcast/counts", PLAN_HASH, CLIENT_PLAN, NUM_NEW, MAX_COHORT, merges)
    counts_ctx0 = sha("ctx0", VERSION, RUN_ID, ROUND, EXCHANGE, roster, plan_digest, counts)
    out["counts"] = {"broadcast": counts.hex(), "ctx0": counts_ctx0.hex()}

    channel, masking, own = ({n: fixed_bytes(kind, n) for n in NAMES} for kind in ("channel", "mask", "self"))
    base = bytes([9]) + bytes(31)
    said: dict[str, tuple[str, bytes, bytes, bytes, int, int]] = {}
    records = {}
    for n in NAMES:
        commitment = sha("commitment", ctx0, n, own[n])
        said[n] = (n, x25519(channel[n], base), x25519(masking[n], base), commitment, C, MIN_COHORT)
        signature = signing[n].sign(frame("sign/keys", ctx0, *said[n]))
        records[n] = b"".join(said[n][1:4]) + struct.pack(">II", C, MIN_COHORT) + signature
    ctx1 = sha("ctx1", ctx0, *(part for n in NAMES for part in said[n]))
    out |= {"records": {n: r.hex() for n, r in records.items()}, "ctx1": ctx1.hex()}

    dealt: dict[str, dict[str, str]] = {n: {} for n in NAMES}
    shares: dict[tuple[str, str], tuple[bytes, bytes]] = {}
    for n in NAMES:
        for point, peer in enumerate(NAMES, start=1):
            if peer == n:
                continue
            of_self = polynomial(own[n], [fixed("self-coefficient", n)], point)
            of_mask = polynomial(masking[n], [fixed("mask-coefficient", n)], point)
            shares[n, peer] = of_self, of_mask
            key = hkdf(x25519(channel[n], said[peer][1]), ctx1, frame("key/channel", n, peer), 32)
            sealed = AESGCM(key).encrypt(bytes(12), of_self + of_mask + bytes([RINGS]), frame("seal", ctx1, n, peer))
            hashes = (sha(k, ctx1, n, peer, s)[:16] for k, s in (("share/self", of_self), ("share/mask", of_mask)))
            dealt[n][peer] = (sealed + b"".join(hashes)).hex()
    out["dealt"] = dealt

    ctx2 = sha("ctx2", ctx1, *U2)
    masked = {}
    for n in U3:
        lanes = [1, *(fixed(f"lane-{i}", n, WORD) for i in range(1, NUM_LANES))]
        seed = hkdf(own[n], ctx2, frame("mask/self", n), 48)
        lanes = [a + b for a, b in zip(lanes, stream(seed, NUM_LANES), strict=True)]
        for peer in U2:
            if peer == n:
                continue
            shared = x25519(masking[n], said[peer][2])
            seed = hkdf(shared, ctx2, frame("mask/pair", *sorted((n, peer))), 48)
            sign = 1 if n < peer else -1
            lanes = [a + sign * b for a, b in zip(lanes, stream(seed, NUM_LANES), strict=True)]
        masked[n] = [lane % WORD for lane in lanes]
    total = [sum(fixed(f"lane-{i}", n, WORD) for n in U3) % WORD for i in range(1, NUM_LANES)]
    out |= {"ctx2": ctx2.hex(), "masked": masked, "sum": [len(U3), *total]}

    ctx3 = sha("ctx3", ctx2, *U3)
    out["ctx3"] = ctx3.hex()
    out["agreements"] = {n: signing[n].sign(frame("sign/agreement", ctx3, n)).hex() for n in U3}
    opened = {}
    for n in U3:
        given = [shares[d, n][0] if d in U3 else shares[d, n][1] for d in U2 if d != n]
        opened[n] = (own[n] + b"".join(given)).hex()
    out["openings"] = opened
    return out


if __name__ == "__main__":
    print(json.dumps(transcript(), indent=1))
