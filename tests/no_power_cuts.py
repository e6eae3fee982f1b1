"""Nobody cuts the power during a test: a file need not be on the disk for a kill to leave it, so none is waited for."""

import os


def _is_written(descriptor: int) -> None:
    os.fstat(descriptor)


os.fsync = _is_written  # type: ignore[assignment]
