"""One process at a time in a folder; the system frees it with the process, also after kill -9."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agfl_models.errors import AgflError
from agfl_models.files.file_systems import NO_LOCKS, warn_once

LOCK_FILE = ".lock"  # where the folder itself cannot be locked, as on network shares


@contextmanager
def held(folder: Path, refusal: AgflError, *, without: AgflError | None = None) -> Iterator[None]:
    """Hold a folder that exists while the block runs; raises `refusal` where another process does.

    without: what is raised where the file system has no locks; None goes on, and says so.
    """
    try:
        descriptor = lock(folder)
    except BlockingIOError:
        raise refusal from None
    if descriptor is None:
        if without is not None:
            raise without
        warn_once(f"{folder}: this file system has no locks; let no second process use the folder meanwhile")
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a folder; return the descriptor whose end frees it, or None where the file system has no locks.

    Raises:
        BlockingIOError: another process has it, and we are not to wait.
        OSError: the folder cannot be opened.
    """
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    descriptor = os.open(folder, os.O_RDONLY)
    if _is_locked(descriptor, how, fcntl.flock):
        return descriptor
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    return descriptor if _is_locked(descriptor, how, fcntl.lockf) else None


def _is_locked(descriptor: int, how: int, function: Callable[[int, int], None]) -> bool:
    """Lock a file; close it where that does not work."""
    try:
        function(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EACCES:  # what some systems say where another process has it
            raise BlockingIOError from None
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True
