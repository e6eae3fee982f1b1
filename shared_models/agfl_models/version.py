"""Which version of the package this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("agfl")
except PackageNotFoundError:  # the code is used without an installation
    VERSION = "unknown"
