"""All of a run's randomness (never its keys) comes from here, so that a run can be repeated bit for bit.

What is public follows from the run's seed; what an owner draws of its own text follows from a secret of that owner.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

import numpy as np

from agfl_protocol.secagg.context import frame

SECRET_BYTES = 32
SERVER = "server"


def derive_seed(run_seed: int, name: str, round_number: int, purpose: str) -> int:
    """Return a 63-bit seed: SHA-256 of run seed, owner NAME, round and purpose.

    Neither Flower's node ids nor the exchange nor the configuration enters, so a repeated round trains on the same
    batches and a simulation draws what a deployment draws.
    """
    label = "\x1f".join(("agfl/seed/v1", str(run_seed), name, str(round_number), purpose))
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big") >> 1


def first_model_seed(run_seed: int) -> int:
    """Return the seed of the weights with which a run begins."""
    return derive_seed(run_seed, SERVER, 0, "model")


def generator(run_seed: int, name: str, round_number: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one owner, round and purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(run_seed, name, round_number, purpose)))


@dataclass(frozen=True)
class OwnerRandomness:
    """What one owner draws: its batches, what it evaluates on, how it rounds. The secret, 32 bytes, is never shown.

    nonce: stands for the run's id, where runs of one seed are to draw alike.
    """

    secret: bytes = field(repr=False)
    nonce: str | None = None

    def __post_init__(self) -> None:
        assert len(self.secret) == SECRET_BYTES, "a shorter secret could be guessed"

    @staticmethod
    def of_seed(run_seed: int, name: str) -> OwnerRandomness:
        """Return that of a simulated owner, who has no secret from whoever knows the run's seed."""
        return OwnerRandomness(hashlib.sha256(frame("owner-of-seed", str(run_seed), name)).digest(), nonce="seed")

    def generator(self, run_id: str, exchange: int, purpose: str) -> np.random.Generator:
        """Return a generator for one exchange of a run and one purpose: the same bits whenever it is asked for.

        Its seed is HMAC-SHA256 of the three under the secret, of which NumPy keeps 128 bits.
        """
        message = frame("owner-randomness", run_id if self.nonce is None else self.nonce, exchange, purpose)
        seed = hmac.digest(self.secret, message, "sha256")
        return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
