"""The program of a worker process: a worker on a line to its driver, until the driver is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from agfl_sim.engines.workers.worker import Worker


def main() -> None:
    """Entry point; the argument is the descriptor of the line to the driver, stdin ends with the driver."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the driver says when it is over
    threading.Thread(target=_leave_with_driver, daemon=True).start()
    line = _Line(Connection(int(sys.argv[1])))
    with suppress(EOFError, OSError):
        worker = Worker(line.send)
        while True:
            worker.hear(line.receive())


def _leave_with_driver() -> None:
    """End this process in whatever it does, once nobody holds the other end of stdin."""
    while os.read(0, 1):
        pass
    os._exit(0)


class _Line:
    """A worker's end; several threads may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, content: object) -> None:
        """Send it whole."""
        with self._lock:
            self._connection.send(content)

    def receive(self) -> object:
        """Return what comes next; raises EOFError once the driver is gone."""
        return self._connection.recv()
