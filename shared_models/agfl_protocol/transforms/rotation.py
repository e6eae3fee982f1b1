"""Rotation: a vector in a random basis, in which each element is about N(0, |x|^2 / D) whatever the vector is.

So one public number, the bound of the norm, says the range of every element, and who fills them all is bounded, too.
The randomized Hadamard transform of Kairouz, Liu and Steinke 2021, arXiv:2102.06387, section 4, in two passes: over
columns of M elements, each with one of every B-th, and then over columns of what the first pass made, transposed. M is
so much larger than B that each element spreads evenly over all D = M B, which so need not be a power of two.
Only signs change, and sums and differences are taken, in one order: every processor has the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agfl_protocol.secagg.masks import SEED_BYTES, Mask
from agfl_protocol.update import Vector

_EVENNESS = 16  # M / B at least: so far each element's energy spreads evenly, to within B / M
_PANEL = 2**17  # elements that are transformed while they stay in the cache
_BLOCK = 2**16  # elements of rows that follow one another
_BLOCK_BYTES = 16  # of the stream that the signs are taken from


def rotation_seed(run_seed: int, round_number: int) -> bytes:
    """Return the public seed of a round's rotation, SHA-512 of the run's seed and the round, cut."""
    label = "\x1f".join(("agfl/rotation/v1", str(run_seed), str(round_number)))
    return hashlib.sha512(label.encode()).digest()[:SEED_BYTES]


@dataclass(frozen=True)
class Rotation:
    """Of vectors (size,) into vectors (D,), and back; `seed` and `number`, which says whose, decide the signs."""

    size: int
    seed: bytes
    number: int = 0

    @cached_property
    def column(self) -> int:
        """M, a power of two."""
        column = 1
        while column * column < _EVENNESS * self.size and column < self.size:
            column *= 2
        return column

    @property
    def padded(self) -> int:
        """D: `size`, filled up with zeros to columns."""
        return -(-self.size // self.column) * self.column

    def forward(self, x: Vector, factor: float) -> Vector:
        """Return `factor` times x (size,) in the random basis, (D,)."""
        y = np.empty(self.padded, np.float32)
        self._first_pass(x, np.float32(factor / self.column), y.reshape(-1, self.column))
        self._flip(y, 1)
        _transform(y.reshape(self.column, -1))
        return y

    def inverse(self, y: Vector) -> Vector:
        """Return y (D,) in the basis of the model, (size,); `y` is overwritten."""
        _transform(y.reshape(self.column, -1))
        self._flip(y, 1)
        x = np.ascontiguousarray(y.reshape(-1, self.column).T).reshape(-1)
        _transform(x.reshape(self.column, -1))
        self._flip(x, 0)
        x *= np.float32(1 / self.column)
        return x[: self.size]

    def _first_pass(self, x: Vector, factor: np.float32, y: NDArray[np.float32]) -> None:
        """Write the first pass over x (size,), transposed, to y (B, M): no other array is as long as x."""
        columns, rest = y.shape[0], self.size % y.shape[0]
        rows, last = x[: self.size - rest].reshape(-1, columns), x[self.size - rest :]
        panels, low = _Panels(y), _low(self.column, columns)
        for first in range(0, self.column, low):
            signs = self._signs(0, first * columns, low * columns).reshape(low, columns)
            full = min(max(len(rows) - first, 0), low)
            for start, buffers in _panels(low, columns):
                width = buffers[0].size // low
                block, end = buffers[0].reshape(low, width), start + width
                np.multiply(rows[first : first + full, start:end], factor, out=block[:full])
                block[full:] = 0
                if first + full == len(rows) and full < low and rest > start:  # the last row has so many elements
                    part = last[start:end]
                    np.multiply(part, factor, out=block[full, : part.size])
                words = block.view(np.uint32)
                words ^= signs[:, start:end].astype(np.uint32) << np.uint32(31)
                panels.write(first, start, _hadamard(*buffers, width).reshape(low, width))
        for start, (here, there) in _panels(self.column, columns):
            width = here.size // self.column
            place = y[start : start + width]
            here[...] = place.reshape(-1)
            place[...] = _hadamard(here, there, low * width).reshape(self.column, width).T

    @cached_property
    def _key(self) -> Mask:
        seed = hashlib.sha512(self.seed + self.number.to_bytes(4, "big")).digest()[:SEED_BYTES]
        return Mask(seed, subtract=False)

    def _signs(self, number: int, start: int, size: int) -> NDArray[np.uint8]:
        """Return the signs of so many elements in the first pass (0) or the second (1): 1 where one changes."""
        first, before = divmod(number * -(-self.padded // 8) + start // 8, _BLOCK_BYTES)
        skipped = start % 8
        num_bytes = before + -(-(skipped + size) // 8)
        stream = self._key.stream(first * _BLOCK_BYTES // 8).update(bytes(num_bytes))
        return np.unpackbits(np.frombuffer(stream, np.uint8, offset=before), count=skipped + size)[skipped:]

    def _flip(self, y: Vector, number: int) -> None:
        """Change the signs of elements (D,) as a pass does."""
        words = y.view(np.uint32)
        for start in range(0, y.size, _PANEL):
            part = words[start : start + _PANEL]
            part ^= self._signs(number, start, part.size).astype(np.uint32) << np.uint32(31)


class _Panels:
    """The panels of a matrix (M, B), one after another in the memory of its transpose y (B, M)."""

    def __init__(self, y: NDArray[np.float32]) -> None:
        columns, rows = y.shape
        width = max(1, _PANEL // rows)
        self._even = columns - columns % width
        self._whole = y[: self._even].reshape(-1, rows, min(width, columns) if self._even else width)
        self._last = y[self._even :].reshape(rows, -1)

    def write(self, row: int, column: int, block: NDArray[np.float32]) -> None:
        """Write a block of the matrix whose first element is here."""
        rows = slice(row, row + len(block))
        width, even = self._whole.shape[2], max(0, min(block.shape[1], self._even - column))
        assert column % width == even % width == 0, (column, even, width)
        whole = block[:, :even].reshape(len(block), -1, width).transpose(1, 0, 2)
        self._whole[column // width : (column + even) // width, rows] = whole
        start = column + even - self._even
        self._last[rows, start : start + block.shape[1] - even] = block[:, even:]


def _low(rows: int, columns: int) -> int:
    """Return how many rows that follow one another are transformed before those that lie apart: each in the cache."""
    balanced = 1 << (rows.bit_length() - 1) // 2
    return min(rows, max(balanced, 1 << max(0, (_BLOCK // columns).bit_length() - 1)))


def _panels(rows: int, columns: int) -> Iterator[tuple[int, tuple[Vector, Vector]]]:
    """Yield, of each panel of a matrix (rows, columns), its first column and room for its elements, twice."""
    width = max(1, _PANEL // rows)
    buffers = np.empty((2, rows * min(width, columns)), np.float32)
    for start in range(0, columns, width):
        size = rows * min(width, columns - start)
        yield start, (buffers[0, :size], buffers[1, :size])


def _transform(x: NDArray[np.float32]) -> None:
    """Hadamard transform of each column of x (M, B) in place, without its factor M^-1/2."""
    rows, columns = x.shape
    low = _low(rows, columns)
    for block in x.reshape(-1, low, columns):
        _transform_panels(block)
    _transform_panels(x.reshape(-1, low * columns))


def _transform_panels(x: NDArray[np.float32]) -> None:
    rows, columns = x.shape
    for start, (here, there) in _panels(rows, columns):
        width = here.size // rows
        part = x[:, start : start + width]
        here.reshape(part.shape)[...] = part
        part[...] = _hadamard(here, there, width).reshape(part.shape)


def _hadamard(here: Vector, there: Vector, width: int) -> Vector:
    """Return the transform of the columns of a panel of so many, in one of its two places; the other is used, too."""
    half = width
    while half < here.size:
        pairs, results = here.reshape(-1, 2, half), there.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=results[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=results[:, 1])
        here, there, half = there, here, 2 * half
    return here
