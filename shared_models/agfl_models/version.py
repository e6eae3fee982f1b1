"""Which version of the package this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("agfl")
except PackageNotFoundError:  # the code is used without an installation
    VERSION = "unknown"


def written_by(version: str | None) -> str:
    """Return who wrote a file, beside who reads it."""
    writer = f"agfl {version}" if version is not None else "a version of agfl that did not yet say which it was"
    return f"was written by {writer}, and this is version {VERSION}"
