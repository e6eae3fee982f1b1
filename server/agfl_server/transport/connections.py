"""Who may hold a connection, how many, and how long: strangers only until an owner needs the place.

A connection is unproven until a request on it was signed by a registered node. Honest ones are so for a few round
trips, so where places run out, the oldest unproven one of the most crowded address goes: whoever floods us pushes out
its own.
"""

from __future__ import annotations

import asyncio
import math
import resource
import time
from collections import Counter
from collections.abc import Callable

from agfl_server.transport.limits import Limits

_MAX_FILES = 2**16


class Connection:
    """One accepted connection, from before its TLS handshake to its end.

    key_id: who signed a request on it, "" as long as nobody has. deadline: when it is cut unless something happens.
    is_busy: whether it waits for us. abort: ends it at once.
    """

    def __init__(self, connections: Connections, address: str, deadline: float) -> None:
        self._connections = connections
        self.address, self.deadline = address, deadline
        self.key_id = ""
        self.is_busy = self.is_cut = False
        self.abort: Callable[[], object] = lambda: None

    def prove(self, key_id: str) -> None:
        """A request on it was signed by this node."""
        if key_id != self.key_id:
            self._connections.move(self, key_id)


class Connections:
    """All connections of a server. For the event loop's thread only."""

    def __init__(self, limits: Limits, files: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._most = max(2, min(limits.connections, files - limits.reserved_files))
        self._most_unproven = max(1, min(limits.unproven, self._most // 2))
        self._unproven: dict[Connection, None] = {}  # the oldest first, as all dicts here
        self._proven: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._unproven) + sum(map(len, self._proven.values()))

    def admit(self, address: str) -> Connection:
        """Take in a connection, in the place of another where there is no other place."""
        by_address = Counter(connection.address for connection in self._unproven)
        if by_address[address] >= self._limits.unproven_per_address:
            self._cut_oldest(address)
        elif len(self._unproven) >= self._most_unproven:
            self._cut_oldest(by_address.most_common(1)[0][0])
        elif len(self) >= self._most:
            if self._unproven:
                self._cut_oldest(by_address.most_common(1)[0][0])
            else:
                self._cut_one_of(max(self._proven, key=lambda key_id: len(self._proven[key_id])))
        connection = Connection(self, address, self._clock() + self._limits.headers_s)
        self._unproven[connection] = None
        return connection

    def move(self, connection: Connection, key_id: str) -> None:
        """A connection is now that of a node; of too many, one that waits for nothing goes first."""
        self.drop(connection)
        connection.key_id = key_id
        if len(self._proven.get(key_id, ())) >= self._limits.per_node:
            self._cut_one_of(key_id)
        self._proven.setdefault(key_id, {})[connection] = None

    def drop(self, connection: Connection) -> None:
        """A connection has ended."""
        self._unproven.pop(connection, None)
        own = self._proven.get(connection.key_id)
        if own is not None:
            own.pop(connection, None)
            if not own:
                del self._proven[connection.key_id]

    def sweep(self) -> None:
        """Cut what is past its deadline."""
        now = self._clock()
        proven = [connection for own in self._proven.values() for connection in own]
        for connection in [*self._unproven, *proven]:
            if connection.deadline < now:
                self._cut(connection)

    def _cut_oldest(self, address: str) -> None:
        self._cut(next(connection for connection in self._unproven if connection.address == address))

    def _cut_one_of(self, key_id: str) -> None:
        own = list(self._proven[key_id])
        self._cut(next((connection for connection in own if not connection.is_busy), own[0]))

    def _cut(self, connection: Connection) -> None:
        self.drop(connection)
        connection.is_cut, connection.deadline = True, math.inf
        connection.abort()


def raise_file_limit() -> int:
    """Let this process open as many files as the machine permits; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MAX_FILES if soft == resource.RLIM_INFINITY else soft


async def sweep_for_ever(connections: Connections, every_s: float) -> None:
    """Cut connections that are past their deadlines until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        connections.sweep()
