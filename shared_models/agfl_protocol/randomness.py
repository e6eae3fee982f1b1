"""All of a run's randomness (never its keys) comes from here, so that a run can be repeated bit for bit."""

from __future__ import annotations

import hashlib

import numpy as np

SERVER = "server"


def derive_seed(run_seed: int, name: str, round_number: int, purpose: str) -> int:
    """Return a 63-bit seed: SHA-256 of run seed, owner NAME, round and purpose.

    Neither Flower's node ids nor the exchange nor the configuration enters, so a repeated round trains on the same
    batches and a simulation draws what a deployment draws.
    """
    label = "\x1f".join(("agfl/seed/v1", str(run_seed), name, str(round_number), purpose))
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, name: str, round_number: int, purpose: str) -> np.random.Generator:
    """Return a NumPy generator for one owner, round and purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(run_seed, name, round_number, purpose)))
