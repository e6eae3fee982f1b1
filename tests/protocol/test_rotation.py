"""A rotation keeps norms, is undone by its inverse, and makes the elements of any vector alike.

Legend: M elements of a column, D in the basis.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_protocol.secagg.masks import SEED_BYTES, Mask
from agfl_protocol.transforms.basis import Basis
from agfl_protocol.transforms.rotation import Rotation, rotation_seed
from agfl_protocol.update import Vector

SEED = rotation_seed(7, 1)


def random_vector(size: int, seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def norm(x: Vector) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_norm_stays_and_the_inverse_undoes_it(size: int, seed: int) -> None:
    rotation, x = Rotation(size, SEED, seed % 3), random_vector(size, seed)
    y = rotation.forward(x, 2.0)
    assert y.shape == (rotation.padded,)
    assert norm(y) == pytest.approx(2 * norm(x), rel=1e-5)
    np.testing.assert_allclose(rotation.inverse(y), 2 * x, atol=2e-5)


@pytest.mark.parametrize("size", [1000, 55_872, 205_952, 1_000_003])
def test_little_is_filled_up(size: int) -> None:
    rotation = Rotation(size, SEED)
    assert size <= rotation.padded <= size * (1.03 if size == 1000 else 1.01)
    assert rotation.column**2 >= 16 * size  # so that what one column has spreads evenly over all


def vectors(size: int) -> dict[str, NDArray[np.float32]]:
    """What trained tensors look like, and what they never do."""
    spike, tail, block = np.zeros((3, size), np.float32)
    spike[size // 3] = 1.0
    tail[:] = np.random.default_rng(1).standard_t(3, size)
    block[: size // 50] = random_vector(size // 50, 2)
    return {"spike": spike, "heavy tail": tail, "one tensor of many": block, "constant": np.ones(size, np.float32)}


@pytest.mark.parametrize("kind", vectors(100))
def test_elements_are_alike_whatever_the_vector_is(kind: str) -> None:
    """So one number says their range: that of a normal distribution with the norm's variance."""
    size = 55_872
    rotation, x = Rotation(size, SEED), vectors(size)[kind]
    y = rotation.forward(x, 1.0) * np.float32(rotation.padded**0.5 / norm(x))
    assert np.abs(y).max() <= 5.5
    assert float(np.mean(np.square(np.abs(y) > 4))) <= 2e-4  # of a normal distribution 6e-5
    rows = np.square(y.reshape(rotation.column, -1), dtype=np.float64)
    assert 0.8 <= rows.mean(axis=0).min() <= rows.mean(axis=0).max() <= 1.2


def test_it_is_the_same_on_every_processor_and_another_in_each_round() -> None:
    """Only sums and differences of two, in one order: so these bits are those of every machine."""
    x = (np.arange(20_000) % 7 - 3).astype(np.float32)
    bits = hashlib.sha256(Rotation(x.size, SEED).forward(x, 1.0).tobytes()).hexdigest()
    assert bits[:16] == "6027a82cd541e64f"
    others = [rotation_seed(7, 2), rotation_seed(8, 1)]
    found = [Rotation(x.size, SEED, 1), *(Rotation(x.size, seed) for seed in others)]
    assert len({bits, *(hashlib.sha256(r.forward(x, 1.0).tobytes()).hexdigest() for r in found)}) == 4


def textbook(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Hadamard transform of each column of x (M, B), a level after the other over the whole matrix."""
    half = 1
    while half < len(x):
        pairs = x.reshape(-1, 2, half, x.shape[1])
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(x.shape)
        half *= 2
    return x


@pytest.mark.parametrize(("panel", "block"), [(64, 16), (512, 2048), (2**17, 2**16)])
@pytest.mark.parametrize("size", [1, 3, 16, 17, 1000, 4097, 20_000])
def test_its_bits_are_those_of_the_textbook_however_it_is_cut(
    size: int, panel: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agfl_protocol.transforms.rotation._PANEL", panel)
    monkeypatch.setattr("agfl_protocol.transforms.rotation._BLOCK", block)
    rotation, x = Rotation(size, SEED), random_vector(size, 5)
    column = rotation.column
    key, num_bytes = hashlib.sha512(SEED + bytes(4)).digest()[:SEED_BYTES], -(-rotation.padded // 8)
    stream = np.frombuffer(Mask(key, subtract=False).stream(0).update(bytes(2 * num_bytes)), np.uint8)
    first, second = np.unpackbits(stream.reshape(2, -1), axis=1, count=rotation.padded)
    filled = np.zeros(rotation.padded, np.float32)
    filled[:size] = x * np.float32(1.5 / column)
    once = textbook(np.where(first, -filled, filled).reshape(column, -1)).T.reshape(-1)
    twice = textbook(np.where(second, -once, once).reshape(column, -1)).reshape(-1)
    assert np.array_equal(rotation.forward(x, 1.5), twice)


def test_a_ring_is_rotated_in_itself() -> None:
    """Who trains the first rings adds nothing to the others, and they are what they would be without it."""
    ring = np.random.default_rng(0).integers(0, 3, 5000).astype(np.uint8)
    basis, x = Basis(5000, SEED, ring), random_vector(5000, 1)
    inner = np.where(ring == 0, x, 0).astype(np.float32)
    first, *others = basis.split(basis.forward(inner, 1.0))
    assert first.any()
    assert not any(part.any() for part in others)
    np.testing.assert_allclose(basis.inverse(basis.forward(x, 1.0)), x, atol=1e-5)
    assert np.array_equal(basis.split(basis.forward(x, 1.0))[0], first)
