"""Masks: AES-256-CTR key streams added to uint64 lanes modulo 2^64, chunk by chunk (NIST SP 800-38A).

A chunk of lanes stays in the processor's cache while the streams of all seeds are added to it, so main memory is
passed over once, whatever the number of masks. OpenSSL and NumPy release the GIL, so threads share the lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from agfl_protocol.secagg.lanes import Lanes

SEED_BYTES = 48  # AES-256 key, then the first counter block
CHUNK_LANES = 2**15  # 256 KiB
_KEY_BYTES, _BLOCK_BYTES = 32, 16
_LANES_PER_BLOCK = 2


@dataclass(frozen=True)
class Mask:
    """The key stream of a seed (48 bytes), to be added or subtracted."""

    seed: bytes = field(repr=False)
    subtract: bool

    def inverse(self) -> Mask:
        """Return the mask that takes this one away."""
        return Mask(self.seed, not self.subtract)

    def stream(self, first_lane: int) -> CipherContext:
        """Return the key stream from `first_lane` on, which must be even."""
        counter = int.from_bytes(self.seed[_KEY_BYTES:], "big") + first_lane // _LANES_PER_BLOCK
        block = (counter % 2**128).to_bytes(_BLOCK_BYTES, "big")
        return Cipher(AES256(self.seed[:_KEY_BYTES]), CTR(block)).encryptor()


def pair_mask(seed: bytes, name: str, peer: str) -> Mask:
    """Return the mask that `name` applies for `peer`: the lower name adds, the higher subtracts, so they cancel."""
    return Mask(seed, subtract=name > peer)


def apply_masks(lanes: Lanes, masks: Sequence[Mask], num_threads: int = 1) -> None:
    """Add every mask to `lanes` in place, modulo 2^64."""
    num_chunks = -(-lanes.size // CHUNK_LANES)
    num_threads = max(1, min(num_threads, num_chunks))
    if num_threads == 1:
        return _apply(lanes, masks, 0, lanes.size)
    cuts = [i * num_chunks // num_threads * CHUNK_LANES for i in range(num_threads)] + [lanes.size]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="masks") as pool:
        list(pool.map(lambda first, end: _apply(lanes, masks, first, end), cuts, cuts[1:]))


def _apply(lanes: Lanes, masks: Sequence[Mask], first: int, end: int) -> None:
    """Add every mask to lanes [first, end); `first` is a multiple of CHUNK_LANES."""
    zeros = memoryview(bytes(8 * CHUNK_LANES))
    buffer = memoryview(bytearray(8 * CHUNK_LANES + _BLOCK_BYTES - 1))  # OpenSSL asks for room for one more block
    stream = np.frombuffer(buffer, "<u8", CHUNK_LANES)
    streams = [(mask.stream(first), np.subtract if mask.subtract else np.add) for mask in masks]
    for start in range(first, end, CHUNK_LANES):
        chunk = lanes[start : min(start + CHUNK_LANES, end)]
        plaintext, numbers = zeros[: 8 * chunk.size], stream[: chunk.size]
        for cipher, operation in streams:
            cipher.update_into(plaintext, buffer)
            operation(chunk, numbers, out=chunk)


class KeyStream:
    """The key stream of a seed as raw bytes: randomness that is not secret, faster than NumPy draws it."""

    def __init__(self, seed: bytes, max_bytes: int) -> None:
        self._stream = Mask(seed, subtract=False).stream(0)
        self._zeros = memoryview(bytes(max_bytes))
        self._buffer = memoryview(bytearray(max_bytes + _BLOCK_BYTES - 1))
        self._bytes = np.frombuffer(self._buffer, np.uint8, max_bytes)

    def next(self, size: int) -> NDArray[np.uint8]:
        """Return the next `size` bytes, in memory that the next call overwrites."""
        self._stream.update_into(self._zeros[:size], self._buffer)
        return self._bytes[:size]
