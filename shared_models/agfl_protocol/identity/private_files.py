"""Files for their owner only: made with their final mode, a whole folder or nothing, checked when read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agfl_models.errors import IdentityError

_OTHERS = 0o077
_LOST = "lost+found"  # what a new file system has in it


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder of mode 0700 to fill; it becomes `folder` at once when the block ends without an error.

    Raises:
        IdentityError: `folder` exists and is not empty, or cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A mount point, as containers have them, cannot be replaced, and its parent often not be written.
        place = folder if os.path.ismount(folder) else folder.parent
        if place == folder and any(name != _LOST for name in os.listdir(folder)):
            raise _taken(folder)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=place))
    except OSError as error:
        raise _not_made(folder, error) from None
    try:
        yield staging
        _move(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_private(path: Path, content: bytes) -> None:
    """Create `path`, which must not exist, with mode 0600 from its first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def read_private(path: Path) -> bytes:
    """Return the content of a private file.

    Raises:
        IdentityError: it is missing, unreadable, or open to group or others.
    """
    check_private(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError("AGFL-IDENTITY-016", f"{path}: cannot be read: {error.strerror}") from None


def check_private(path: Path) -> None:
    """Check that neither group nor others may do anything with a file or folder.

    Raises:
        IdentityError: it is missing, or its mode grants them something.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise IdentityError("AGFL-IDENTITY-017", f"{path}: {(error.strerror or str(error)).lower()}") from None
    if mode & _OTHERS:
        raise IdentityError(
            "AGFL-IDENTITY-018",
            f"{path}: must be closed to group and others (chmod go= {path}), got mode {mode:04o}; where that changes "
            "nothing, as on a Windows drive in WSL or on some shares, another file system is needed",
        )


def _move(staging: Path, folder: Path) -> None:
    try:
        if staging.parent == folder:
            os.chmod(folder, 0o700)
            for path in staging.iterdir():
                os.rename(path, folder / path.name)
            return
        os.rename(staging, folder)  # atomic, and refused by the system unless `folder` is absent or empty
    except OSError as error:
        if folder.exists():
            raise _taken(folder) from None
        raise _not_made(folder, error) from None


def _taken(folder: Path) -> IdentityError:
    return IdentityError("AGFL-IDENTITY-019", f"{folder}: must be a new or empty folder; nothing is overwritten")


def _not_made(folder: Path, error: OSError) -> IdentityError:
    return IdentityError("AGFL-IDENTITY-020", f"{folder}: cannot be made: {error}")
