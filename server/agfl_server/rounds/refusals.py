"""Owners that answered that they take no part: when it is worth asking them again, and why they are not there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_S, LONGEST_S = 30.0, 600.0  # after these an owner is asked again; twice as long each time


@dataclass(frozen=True)
class _Refusal:
    reason: str
    wait_s: float
    again_at: float


@dataclass
class Refusals:
    """The last refusal of each owner, until it is started anew or has long been well again."""

    clock: Callable[[], float] = time.monotonic
    _last: dict[str, _Refusal] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._last

    @property
    def names(self) -> frozenset[str]:
        """Who refused lately."""
        return frozenset(self._last)

    def note(self, name: str, reason: str) -> float:
        """Note a refusal; return after how many seconds the owner is asked again."""
        last = self._last.get(name)
        wait_s = FIRST_S if last is None else min(2 * last.wait_s, LONGEST_S)
        self._last[name] = _Refusal(reason, wait_s, self.clock() + wait_s)
        return wait_s

    def reason(self, name: str) -> str:
        """Return why this owner refused, empty where it did not."""
        return self._last[name].reason if name in self._last else ""

    def is_due(self, name: str) -> bool:
        """Whether it is worth asking this owner again."""
        return self.clock() >= self._last[name].again_at

    def forget(self, name: str) -> None:
        """This owner was started anew."""
        self._last.pop(name, None)

    def forget_old(self) -> None:
        """Forget those that were asked again and have not refused for as long once more."""
        now = self.clock()
        self._last = {name: one for name, one in self._last.items() if now < one.again_at + one.wait_s}
