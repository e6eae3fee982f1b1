"""Whether a machine sees the run's folder, or has one of its own at that path."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_FILE = ".shared"


@dataclass(frozen=True)
class SharedMark:
    """A file in the folder with content that no other folder's has."""

    folder: Path
    content: str

    def is_seen(self) -> bool:
        """Whether this machine finds the file at the same path."""
        try:
            return (self.folder / _FILE).read_text() == self.content
        except OSError:
            return False


@contextmanager
def shared_mark(folder: Path) -> Iterator[SharedMark]:
    """Mark the run's folder for the block; raises OSError where nothing can be written there."""
    mark = SharedMark(folder, secrets.token_hex())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_text(mark.content)
    try:
        yield mark
    finally:
        with suppress(OSError):
            (folder / _FILE).unlink()
