"""gzip, unpacked up to a bound: a small file may say that it is a very large one."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from agfl_models.errors import DataError

_PART = 1 << 20


def unpack(path: Path, limit: int, rule: str) -> bytes:
    """Return what a gzip file holds.

    Raises:
        DataError: it is broken, or holds more than `limit` bytes, of which `rule` says why there is one.
    """
    parts, size = [], 0
    try:
        with gzip.open(path) as file:
            while part := file.read(_PART):
                size += len(part)
                if size > limit:
                    raise DataError("AGFL-DATA-048", f"data: {path}: {rule}, got more than {limit / 2**20:,.0f} MiB")
                parts.append(part)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("AGFL-DATA-049", f"data: {path}: must be whole gzip, got a broken one: {error}") from None
    return b"".join(parts)
