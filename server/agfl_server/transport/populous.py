"""A transport with more nodes than can be asked who they are: a sum invites a few of them, and asks nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class PopulousGrid(Protocol):
    """A grid that has the NAMES of all its nodes, without one having been asked."""

    @property
    def names(self) -> Sequence[str]:
        """Sorted; made when they are looked at."""

    def node_of(self, name: str) -> int:
        """Return the id of one of `names`."""
