"""Which of a grid's nodes may take part: whoever is connected, or of too many to be asked those who are invited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from flwr.serverapp import Grid

from agfl_server.transport.messaging import PopulousGrid


class Attendees(Protocol):
    """See `Connected` and `Invited`."""

    @property
    def names(self) -> Sequence[str] | None:
        """The NAMES from which those who take part are invited, sorted; None where only the nodes know theirs."""

    def online(self) -> Sequence[int]:
        """Return the nodes that are there now, and may take part."""

    def name_of(self, node: int) -> str | None:
        """Return the NAME that a node must have; None where nothing is known of it."""

    def invite(self, names: Iterable[str]) -> None:
        """Have these take part from now on, and nobody else where there are `names`."""


class Connected:
    """Whoever is connected."""

    names: Sequence[str] | None = None

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def online(self) -> Sequence[int]:
        """As of `Attendees`."""
        return list(self._grid.get_node_ids())

    def name_of(self, node: int) -> str | None:
        """As of `Attendees`."""
        return None

    def invite(self, names: Iterable[str]) -> None:
        """Everybody is invited already."""


class Invited:
    """Of a grid with more nodes than can be asked those who were invited last; nothing is kept of others."""

    def __init__(self, grid: PopulousGrid) -> None:
        self._grid, self._invited = grid, dict[int, str]()

    @property
    def names(self) -> Sequence[str] | None:
        """As of `Attendees`."""
        return self._grid.names

    def online(self) -> Sequence[int]:
        """As of `Attendees`."""
        return list(self._invited)

    def name_of(self, node: int) -> str | None:
        """As of `Attendees`."""
        return self._invited.get(node)

    def invite(self, names: Iterable[str]) -> None:
        """As of `Attendees`."""
        self._invited = {self._grid.node_of(name): name for name in names}


def attendees_of(grid: Grid) -> Attendees:
    """Return which nodes of a grid may take part."""
    return Invited(grid) if isinstance(grid, PopulousGrid) else Connected(grid)
