"""Moments that are ahead, soonest first: a change and a look cost the logarithm of how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key", int, str)


class Ahead(Generic[Key]):
    """At most one moment a key; the keys of moments that are alike come in their order."""

    def __init__(self, moments: Mapping[Key, float]) -> None:
        self._moments: dict[Key, float] = dict(moments)
        self._heap: list[tuple[float, Key]] = [(moment, key) for key, moment in self._moments.items()]
        heapify(self._heap)

    def put(self, key: Key, moment: float) -> None:
        """Set the moment of a key, instead of the one that it has."""
        self._moments[key] = moment
        heappush(self._heap, (moment, key))
        if len(self._heap) > 2 * len(self._moments) + 64:  # moments far ahead that were replaced would stay for ever
            self._heap = [(moment, key) for key, moment in self._moments.items()]
            heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Forget a key's moment, if it has one."""
        self._moments.pop(key, None)

    def first(self) -> tuple[float, Key] | None:
        """Return the soonest moment and its key; None where nothing is ahead."""
        while self._heap:
            moment, key = self._heap[0]
            if self._moments.get(key) == moment:
                return moment, key
            heappop(self._heap)
        return None
