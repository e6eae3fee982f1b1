"""What file systems of containers, network shares and WSL do not offer: gone on without where that is safe, said once.

What is lost is durability over a power cut, or the protection against a second process; never what is written.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

log = logging.getLogger("agfl")
# What a system call answers where the file system has no such thing. EIO and ENOSPC are none of them: they are faults.
NOT_OFFERED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EBADF, errno.ENOTTY}
)
NO_LOCKS = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EPERM}
)
_told: set[str] = set()


def sync(descriptor: int, path: Path) -> None:
    """Have a file's content on disk, as far as its file system offers that; raises OSError where it fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        warn_once(f"{path.parent}: this file system confirms no writes; a power cut may take the last of them")


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on disk, as far as its file system offers that; raises OSError where it fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Most of those that cannot sync a folder write its entries at once, so nothing is said.
        if error.errno not in NOT_OFFERED:
            raise


def set_mode(path: Path, mode: int) -> None:
    """Set who may read a file; raises OSError where it stays open to more than that."""
    try:
        os.chmod(path, mode)
    except OSError as error:
        is_wider = path.stat().st_mode & 0o777 & ~mode
        if error.errno not in NOT_OFFERED or (is_wider and not mode & 0o077):
            raise


def warn_once(line: str) -> None:
    """Say it, if it was not said by this process."""
    if line not in _told:
        _told.add(line)
        log.warning("%s", line)
