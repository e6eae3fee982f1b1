"""A safetensors file as the library writes it, but from the arrays themselves: the library has a model twice for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# In the library's order, those of the widest alignment first.
_NAMES = {"uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64", "float32": "F32", "uint32": "U32"}
_NAMES |= {"int32": "I32", "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8"}
_NAMES |= {"bool": "BOOL"}
_DTYPES = {letters: name for name, letters in _NAMES.items()}
_RANK = {name: number for number, name in enumerate(_NAMES)}
_ALIGNMENT = 8


def mapped(path: Path, name: str) -> NDArray[Any]:
    """Return a tensor that stays in its file: its pages are read when they are asked for, and none is kept.

    The file must stay as it is; replacing or deleting it does no harm.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        facts = json.loads(file.read(size))[name]
    start, _ = facts["data_offsets"]
    dtype = np.dtype(_DTYPES[facts["dtype"]]).newbyteorder("<")
    return np.memmap(path, dtype, "r", 8 + size + start, tuple(facts["shape"]))


def parts_of_file(
    tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """Return what makes the file when it is written one after the other; facts: its metadata."""
    names = sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype.name], name))
    ends = list(accumulate(tensors[name].nbytes for name in names))
    head: dict[str, Any] = {} if facts is None else {"__metadata__": dict(facts)}
    for name, end in zip(names, ends, strict=True):
        array = tensors[name]
        place = [end - array.nbytes, end]
        head[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    little = (np.asarray(tensors[name], tensors[name].dtype.newbyteorder("<"), order="C") for name in names)
    return [len(text).to_bytes(8, "little"), text, *(array.reshape(-1).view(np.uint8).data for array in little)]
