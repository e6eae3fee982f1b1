"""Our files are those that safetensors writes, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from agfl_models.files.tensor_file import parts_of_file

TYPES = ["uint64", "int64", "float64", "complex64", "uint32", "int32", "float32"]
TYPES += ["float16", "uint16", "int16", "int8", "uint8", "bool"]
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (5, 0)])
ARRAYS = st.builds(lambda kind, shape: np.ones(shape, kind), st.sampled_from(TYPES), SHAPES)


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), ARRAYS, max_size=6),
    st.none() | st.text('a"\\é\n\x01'),
)
def test_parts_are_the_file_of_the_library(tensors: dict[str, NDArray[Any]], fact: str | None) -> None:
    facts = None if fact is None else {"state": fact}
    assert b"".join(parts_of_file(tensors, facts)) == save(tensors, facts)


def test_parts_hold_no_copy_of_a_large_array() -> None:
    array = np.arange(10_000, dtype=np.float32)
    (part,) = (part for part in parts_of_file({"model": array}) if isinstance(part, memoryview))
    assert np.shares_memory(np.frombuffer(part, np.uint8), array)
