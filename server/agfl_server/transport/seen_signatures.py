"""Signatures that were used, so that none is good for a second request; and how fast a node may make requests."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from agfl_protocol.identity.request_signature import MAX_CLOCK_DIFFERENCE_S, NONCE_BYTES, RequestSignature

_NS = 10**9


class SeenSignatures:
    """Those of one node within the time in which they could be used again, but not more than `capacity`.

    Where that does not do, the oldest are forgotten, and with them everything older is refused: a node that floods us
    spends our memory up to a bound, and its own good signatures.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._seen: set[int] = set()
        self._by_time: list[int] = []
        self._floor = 0

    def use(self, signature: RequestSignature, now_ns: int) -> bool:
        """Return whether this signature was not used before; from now on it was."""
        number = signature.nonce_and_time
        if number <= self._floor or number in self._seen:
            return False
        self._seen.add(number)
        heapq.heappush(self._by_time, number)
        expired = max(0, now_ns - (MAX_CLOCK_DIFFERENCE_S + 1) * _NS) << (8 * NONCE_BYTES)
        while len(self._by_time) > self._capacity or self._by_time[0] < expired:
            self._floor = heapq.heappop(self._by_time)
            self._seen.discard(self._floor)
        return True


class Pace:
    """A node's calls: so many a second, and so many at once after a pause."""

    def __init__(self, per_s: float, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._at_once, self._clock = per_s, at_once, clock
        self._left, self._at = float(at_once), clock()

    def wait_s(self) -> float:
        """Count a call; return how long it must wait."""
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_s) - 1
        self._at = now
        return max(0.0, -self._left / self._per_s)
