"""The link to a worker that is a process of this machine: a pair of sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

_PROGRAM = "from agfl_sim.engines.workers.process_worker import main; main()"
_END_S = 5.0


class ProcessLink:
    """See `Link`; making one starts the process."""

    def __init__(self) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = launch(its.fileno())
        self._connection = Connection(ours.detach())

    def send(self, content: object) -> None:
        """As of `Link`."""
        self._connection.send(content)

    def receive(self) -> object:
        """As of `Link`."""
        return self._connection.recv()

    def end(self) -> str:
        """As of `Link`."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def launch(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a worker whose line to us is a descriptor.

    Not by multiprocessing, whose children run the researcher's own script again, up to this very call. A worker finds
    the modules that this process finds, and leaves the other processors to the other workers.
    """
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(descriptor)],
        stdin=subprocess.PIPE,
        pass_fds=[descriptor],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
