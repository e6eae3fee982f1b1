"""Files that a crash leaves whole: written at once, or grown a line at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from agfl_models.errors import CheckpointError
from agfl_models.files.file_systems import set_mode, sync, sync_folder


def write_atomically(path: Path, content: bytes | Sequence[bytes | memoryview], mode: int = 0o644) -> None:
    """Write a file so that a crash leaves either the old content or the new; raises OSError.

    content: of the file, or its parts in turn. As `written_atomically`.
    """
    with written_atomically(path, mode) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def written_atomically(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file that is at `path` once all of it is written; an error on the way leaves what was there.

    Whoever has the old one open, or mapped, keeps it. Only one thread may write a file at a time: what kill -9 leaves
    beside it has a fixed name, for the next one to write over.

    Raises:
        OSError: as the system says.
    """
    temporary = path.with_name(f".writing-{path.name}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            sync(file.fileno(), path)
        set_mode(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # Ctrl-C may come after the rename
        raise
    sync_folder(path.parent)


def read_json_lines(path: Path, parse_int: Callable[[str], float] = int) -> list[dict[str, Any]]:
    """Return the objects of a file that grows a line at a time; a last line that a crash has cut short is left out.

    parse_int: makes the value of a whole number.

    Raises:
        CheckpointError: the file is missing, unreadable or malformed.
    """
    try:
        lines = path.read_text("utf-8").split("\n")[:-1]  # what follows the last line end is no whole line
    except (OSError, UnicodeDecodeError) as error:
        raise not_read(path, error) from None
    return [_object(line, f"{path}:{number}", parse_int) for number, line in enumerate(lines, start=1) if line.strip()]


def _object(line: str, place: str, parse_int: Callable[[str], float]) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_int=parse_int)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointError("AGFL-CHECKPOINT-001", f"{place}: must be one JSON object, got {line[:80]!r}")
    return found


def refuse_content(folder: Path) -> None:
    """Raise CheckpointError unless a model that is written to `folder` would be all that is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError("AGFL-CHECKPOINT-002", f"{folder}: must be a new or empty folder, got one with content")


def not_read(path: Path, error: OSError | UnicodeDecodeError) -> CheckpointError:
    """Return the error of a file that the system does not give."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError("AGFL-CHECKPOINT-003", f"{path}: no such file")
    return CheckpointError(
        "AGFL-CHECKPOINT-004", f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
    )


def not_written(place: object, error: OSError) -> CheckpointError:
    """Return the error of a file or folder that the system does not take; `place` starts the line."""
    return CheckpointError("AGFL-CHECKPOINT-005", f"{place}: cannot be written: {error.strerror}")
