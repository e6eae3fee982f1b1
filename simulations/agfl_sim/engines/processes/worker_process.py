"""The driver's side of one worker process: starts it, asks it, and ends it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Message

from agfl_models import errors
from agfl_models.errors import ConfigError
from agfl_sim.engines.grid import deflated, inflated
from agfl_sim.engines.processes.link import Begin, ClassPath, Clear, Defect, LogLine, Ready, Refusal, Reply, Request
from agfl_sim.engines.simulated_owners import SimulatedOwners

_PROGRAM = "from agfl_sim.engines.processes.worker import main; main()"
_END_S = 5.0


class DefectError(Exception):
    """A node in a worker failed as none should; the text is the traceback from there."""


class WorkerProcess:
    """A process with the nodes of some owners. `answer` may be called by several threads; one is served at a time."""

    def __init__(self, number: int, owners: SimulatedOwners, folder: Path, classes: tuple[ClassPath, ...]) -> None:
        self._number, self._owners, self._folder, self._classes = number, owners, folder, classes
        self._lock = threading.Lock()
        self._sent: set[str] = set()
        self._start()

    def wait_until_ready(self) -> None:
        """Return once its nodes are there.

        Raises:
            AgflError: one cannot be, as in this process; or the worker cannot start.
        """
        try:
            found = self._receive()
        except (EOFError, OSError):
            raise ConfigError(
                "AGFL-CONFIG-281", f"--engine processes: worker {self._number} must start, {self._how_it_ended()}"
            ) from None
        if isinstance(found, Refusal):
            kind: type[errors.AgflError] = getattr(errors, found.kind)
            raise kind(found.code, found.sentence)
        assert isinstance(found, Ready)

    def clear(self) -> None:
        """Have the worker forget the objects that it got: those of the messages that follow are others."""
        with self._lock:
            self._sent.clear()
            self._send(Clear())

    def answer(self, message: Message, message_id: str) -> Message:
        """Return a node's reply.

        Raises:
            ConfigError: the worker died.
            DefectError: the node failed as none should.
        """
        object_id, contents = deflated(message)
        with self._lock:
            node = message.metadata.dst_node_id
            new = {key: value for key, value in contents.items() if key not in self._sent}
            self._sent |= new.keys()
            try:
                self._connection.send(Request(node, message_id, object_id, tuple(contents), new))
                found = self._receive()
            except (EOFError, OSError):
                name = self._owners.owners[node].name
                raise ConfigError(
                    "AGFL-CONFIG-282",
                    f"--engine processes: worker {self._number} {self._how_it_ended()} while it worked for {name}; "
                    "go on with --resume",
                ) from None
        if isinstance(found, Defect):
            raise DefectError(found.trace)
        assert isinstance(found, Reply)
        return inflated(found.object_id, found.contents)

    def close(self) -> None:
        """End the process, in whatever it does."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()

    def _start(self) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = launch(its.fileno())
        self._connection = Connection(ours.detach())
        self._send(Begin(self._owners, self._folder, self._classes))

    def _send(self, content: object) -> None:
        """Send what is not answered; that the worker is gone shows where it is asked."""
        with suppress(OSError):
            self._connection.send(content)

    def _receive(self) -> object:
        """Return the next answer; log lines before it go to the loggers of this process."""
        while isinstance(found := self._connection.recv(), LogLine):
            logging.getLogger(found.logger).log(found.level, "%s", found.text)
        return found

    def _how_it_ended(self) -> str:
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
