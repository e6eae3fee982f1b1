"""Which version of the package this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGE = "agfl"


@cache
def software() -> str:
    """Return the installed version; "unknown" where the code is used without an installation."""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "unknown"
