"""CPU time of Flower's SecAgg+ on the work of a secure sum: its own functions, each timed once and multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from cpu_time import cpu_seconds, each
from flwr.common.secure_aggregation import ndarrays_arithmetic as flower_arrays
from flwr.common.secure_aggregation import quantization as flower_quantization
from flwr.common.secure_aggregation.crypto import shamir as flower_shamir
from flwr.common.secure_aggregation.crypto import symmetric_encryption as flower_channel
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives import asymmetric as flower_keys
from numpy.typing import NDArray
from secure_attempt import random_delta

FLOWER_LEVELS, FLOWER_MODULUS, FLOWER_CLIP = 2**22, 2**32, 8.0  # its workflow's defaults


@dataclass(frozen=True)
class FlowerKeys:
    """CPU seconds of what Flower's SecAgg+ does with keys and shares, each function timed by itself."""

    key_pair: float
    agreement: float
    seal: float
    open: float
    split: float  # of both secrets
    combine_seed: float
    combine_key: float

    @staticmethod
    @cache
    def measure(n: int, threshold: int, survivors: int) -> FlowerKeys:
        """Shares are combined from all survivors, as its workflow does."""
        (private, public), seed = flower_keys.generate_key_pairs(), bytes(range(32))
        key, peer = flower_keys.private_key_to_bytes(private), flower_keys.public_key_to_bytes(public)
        seeds, parts = (flower_shamir.create_shares(secret, threshold, n)[:survivors] for secret in (seed, key))
        channel, plain = _flower_agree(key, peer), share_keys_plaintext_concat(1, 2, seeds[0], parts[0])
        sealed = flower_channel.encrypt(channel, plain)
        return FlowerKeys(
            key_pair=each(lambda: flower_keys.private_key_to_bytes(flower_keys.generate_key_pairs()[0]), 5),
            agreement=each(lambda: _flower_agree(key, peer), 5),
            seal=each(lambda: flower_channel.encrypt(channel, plain)),
            open=each(lambda: flower_channel.decrypt(channel, sealed)),
            split=sum(
                cpu_seconds(partial(flower_shamir.create_shares, secret, threshold, n)) for secret in (seed, key)
            ),
            combine_seed=cpu_seconds(lambda: flower_shamir.combine_shares(seeds)),
            combine_key=cpu_seconds(lambda: flower_shamir.combine_shares(parts)),
        )


@dataclass(frozen=True)
class FlowerVectors:
    """CPU seconds of what Flower's SecAgg+ does with vectors. mask: one pseudo_rand_gen and its addition."""

    quantize: float
    mask: float
    modulo: float

    @staticmethod
    @cache
    def measure(d: int) -> FlowerVectors:
        """Time each function on one tensor of d elements."""
        delta, seed = random_delta(d), bytes(range(32))

        def quantize() -> list[NDArray[np.int64]]:
            weighted = flower_arrays.parameters_multiply([delta], 0.9)
            return flower_quantization.quantize(weighted, FLOWER_CLIP, FLOWER_LEVELS)

        vector = [quantize()[0].astype(np.int64)]  # as it is after the first mask

        def mask() -> object:
            return flower_arrays.parameters_addition(vector, pseudo_rand_gen(seed, FLOWER_MODULUS, [(d,)]))

        return FlowerVectors(
            quantize=cpu_seconds(quantize),
            mask=cpu_seconds(mask),
            modulo=cpu_seconds(lambda: flower_arrays.parameters_mod(vector, FLOWER_MODULUS)),
        )


def flower_client(n: int, keys: FlowerKeys, vectors: FlowerVectors) -> float:
    """One client's part, as `secaggplus_mod` does it."""
    peers = (n - 1) * (2 * keys.agreement + keys.seal + keys.open)
    return 2 * keys.key_pair + keys.split + peers + vectors.quantize + n * vectors.mask + vectors.modulo


def flower_server(n: int, lost: int, keys: FlowerKeys, vectors: FlowerVectors) -> float:
    """Unmasking, as `SecAggPlusWorkflow.unmask_stage` does it."""
    alive = (n - lost) * (keys.combine_seed + vectors.mask)
    dead = lost * (keys.combine_key + (n - 1) * (keys.agreement + vectors.mask))
    return alive + dead + vectors.modulo


def _flower_agree(private: bytes, public: bytes) -> bytes:
    keys = flower_keys.bytes_to_private_key(private), flower_keys.bytes_to_public_key(public)
    return flower_channel.generate_shared_key(*keys)
