"""What ranks say, as bytes and back: JSON and tensors in one safetensors file, and nothing that runs code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

_TREE = "tree"
TypeOf = Callable[[str], type[Any]]


class NotPlainError(ValueError):
    """Bytes are not what `encode` makes, or speak of a type that is not expected."""


def encode(content: object) -> bytes:
    """Return a dataclass of numbers, text, bytes, paths, tensors, tuples, dictionaries by name, and dataclasses."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_tree(content, tensors)).encode()
    return safetensors.torch.save({**tensors, _TREE: torch.frombuffer(bytearray(tree), dtype=torch.uint8)})


def decode(content: bytes, type_of: TypeOf) -> Any:
    """Return what was encoded; `type_of` finds each dataclass by its module and name.

    Raises:
        NotPlainError: the bytes are malformed, or `type_of` raises it.
    """
    try:
        tensors = safetensors.torch.load(content)
        return _value(json.loads(bytes(tensors.pop(_TREE).numpy())), tensors, type_of)
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NotPlainError(f"malformed: {error}") from error


def loaded_dataclass(name: str) -> type[Any]:
    """Return a dataclass of a module that this process has imported; raises NotPlainError."""
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module), own, None)
    if not (isinstance(found, type) and is_dataclass(found)):
        raise NotPlainError(f"{name} is no dataclass here")
    return found


def name_of(kind: type[Any]) -> str:
    """Return a dataclass's module and name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _tree(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.contiguous()
        return {"tensor": name}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple | list):
        return [_tree(one, tensors) for one in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _tree(one, tensors) for key, one in value.items()}}
    assert is_dataclass(value), f"a {type(value).__name__} is not plain"
    inner = {one.name: _tree(getattr(value, one.name), tensors) for one in fields(value)}
    return {"type": name_of(type(value)), "fields": inner}


def _value(tree: Any, tensors: dict[str, Tensor], type_of: TypeOf) -> Any:
    if isinstance(tree, list):
        return tuple(_value(one, tensors, type_of) for one in tree)
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "bytes" in tree:
        return bytes.fromhex(tree["bytes"])
    if "path" in tree:
        return Path(tree["path"])
    inner = tree["dict"] if "dict" in tree else tree["fields"]
    values = {name: _value(one, tensors, type_of) for name, one in inner.items()}
    return values if "dict" in tree else type_of(tree["type"])(**values)
