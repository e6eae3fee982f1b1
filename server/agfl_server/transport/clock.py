"""The time that a grid's nodes live in: this machine's, or one that a simulation makes up."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid


class Clock(Protocol):
    """What tells a server how late it is, and lets it wait."""

    def now(self) -> float:
        """Return seconds since a moment that stays the same."""

    def wait(self, seconds: float, longest_s: float) -> None:
        """Return after `seconds`; at the latest after `longest_s`, if nothing happens before."""


class MachineClock:
    """The time of this machine, where nobody knows what happens next."""

    def now(self) -> float:
        """As of `Clock`."""
        return time.monotonic()

    def wait(self, seconds: float, longest_s: float) -> None:
        """As of `Clock`."""
        time.sleep(seconds)


@runtime_checkable
class TimedGrid(Protocol):
    """A grid whose nodes live in a time of their own."""

    @property
    def clock(self) -> Clock:
        """Its time."""


def clock_of(grid: Grid) -> Clock:
    """Return the time in which the nodes of a grid live."""
    return grid.clock if isinstance(grid, TimedGrid) else MachineClock()
