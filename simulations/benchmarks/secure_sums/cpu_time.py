"""CPU time of a piece of work on this thread, and the rates of this machine that limit a secure sum."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agfl_protocol.secagg.masks import CHUNK_LANES, Mask


def cpu_seconds(work: Callable[[], object], prepare: Callable[[], object] | None = None) -> float:
    """Return the least CPU time of `work`, each time after `prepare`: of one call, or of up to 9 in 0.3 seconds."""
    samples: list[float] = []
    while not samples or (len(samples) < 9 and sum(samples) < 0.3):
        if prepare is not None:
            prepare()
        began = time.process_time()
        work()
        samples.append(time.process_time() - began)
    return min(samples)


def each(work: Callable[[], object], calls: int = 20) -> float:
    """Return the least CPU time of one call of something short."""

    def repeat() -> None:
        for _ in range(calls):
            work()

    return cpu_seconds(repeat) / calls


@dataclass(frozen=True)
class Rates:
    """What this machine does on one thread: seconds a byte (stream, add, sha256), and seconds an operation."""

    stream: float
    add: float
    keygen: float
    exchange: float
    sign: float
    verify: float
    sha256: float

    @staticmethod
    def measure() -> Rates:
        """Measure on chunks of 256 KiB, and with keys that are loaded."""
        chunk, other = np.ones(CHUNK_LANES, np.uint64), np.ones(CHUNK_LANES, np.uint64)
        cipher, zeros, buffer = (
            Mask(bytes(48), subtract=False).stream(0),
            bytes(chunk.nbytes),
            bytearray(chunk.nbytes + 15),
        )
        private, public = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
        signing, text = Ed25519PrivateKey.generate(), bytes(300)
        verifying, signature = signing.public_key(), signing.sign(text)
        return Rates(
            stream=each(lambda: cipher.update_into(zeros, buffer), 200) / chunk.nbytes,
            add=each(lambda: np.add(chunk, other, out=chunk), 200) / chunk.nbytes,
            keygen=each(X25519PrivateKey.generate),
            exchange=each(lambda: private.exchange(public)),
            sign=each(lambda: signing.sign(text)),
            verify=each(lambda: verifying.verify(signature, text)),
            sha256=each(lambda: hashlib.sha256(zeros)) / chunk.nbytes,
        )

    def masks(self, count: int, num_lanes: int) -> float:
        """Seconds that `count` masks over a vector take."""
        return count * 8 * num_lanes * (self.stream + self.add)

    def client_keys(self, n: int, quorum: int) -> float:
        """Seconds of a client's keys: two drawn, two exchanges with each peer, and all signatures."""
        signatures = 2 * self.sign + (n - 1 + quorum) * self.verify
        return 2 * self.keygen + 2 * (n - 1) * self.exchange + signatures

    def server_keys(self, survivors: int, lost: int) -> float:
        """Seconds of the seeds that the lost share with the survivors."""
        return lost * (self.keygen + survivors * self.exchange)
