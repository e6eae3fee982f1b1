"""A YAML text is read and written once a process: tests share the same few, and copying is quicker than parsing."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

from agfl_models import validation

_MOST = 512
_parsed = lru_cache(maxsize=_MOST)(validation.load_yaml)
_genuine, _written = validation.dump_yaml, dict[tuple[str, bool], str]()


def _load(text: str) -> Any:
    return deepcopy(_parsed(text))


def _dump(content: dict[str, Any], *, is_compact: bool = False) -> str:
    key = repr(content), is_compact
    if key not in _written:
        if len(_written) == _MOST:
            _written.clear()
        _written[key] = _genuine(content, is_compact=is_compact)
    return _written[key]


validation.load_yaml, validation.dump_yaml = _load, _dump
