"""One process at a time in a folder; the system frees it with the process, also after kill -9."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agfl_models.errors import AgflError


@contextmanager
def held(folder: Path, refusal: AgflError) -> Iterator[None]:
    """Hold a folder that exists while the block runs; raises `refusal` where another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
    finally:
        os.close(descriptor)
