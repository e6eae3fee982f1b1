"""The driver's side of one worker process: starts it, asks it, and ends it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Message

from agfl_models import errors
from agfl_models.errors import ConfigError
from agfl_sim.engines.grid import deflated, inflated
from agfl_sim.engines.processes.exchange_log import BEGINS, ExchangeLog
from agfl_sim.engines.processes.link import Begin, ClassPath, Clear, Defect, LogLine, Ready, Refusal, Reply, Request
from agfl_sim.engines.simulated_owners import SimulatedOwners

_PROGRAM = "from agfl_sim.engines.processes.worker import main; main()"
_END_S = 5.0
_MAX_DEATHS = 3  # in one exchange: what ended it will end it again
log = logging.getLogger("agfl.simulate")


class DefectError(Exception):
    """A node in a worker failed as none should; the text is the traceback from there."""


class WorkerProcess:
    """A process with the nodes of some owners, started again where it dies.

    `answer` may be called by several threads; one is served at a time.
    """

    def __init__(self, number: int, owners: SimulatedOwners, folder: Path, classes: tuple[ClassPath, ...]) -> None:
        self._number, self._begin = number, Begin(owners, folder, classes)
        self._names = {node: owner.name for node, owner in owners.owners.items()}
        self._log = ExchangeLog(owners, folder)
        self._turn, self._life = threading.Lock(), threading.Lock()
        self._is_closed, self._is_dead, self._deaths = False, False, 0
        self._kept: dict[str, bytes] = {}  # objects of this batch of messages: one copy for all nodes
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

    def begin_batch(self, kind: str) -> None:
        """Have the worker forget the objects that it got: those of the messages of this kind that follow are others."""
        with self._turn:
            self._kept.clear()
            self._sent.clear()
            if kind in BEGINS:
                self._deaths = 0
            with suppress(OSError):  # that the worker is gone shows where it is asked
                self._connection.send(Clear())

    def answer(self, message: Message, message_id: str) -> Message:
        """Return a node's reply.

        Raises:
            ConfigError: the worker died too often.
            DefectError: the node failed as none should.
        """
        object_id, contents = deflated(message)
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        with self._turn:
            objects = {key: self._kept.setdefault(key, content) for key, content in contents.items()}
            request = Request(node, message_id, object_id, objects, self._log.begin(node, kind))
            found = self._answer(request)
            self._log.answered(kind, request)
        if isinstance(found, Defect):
            raise DefectError(found.trace)
        assert isinstance(found, Reply)
        return inflated(found.object_id, found.contents)

    def close(self) -> None:
        """End the process, in whatever it does."""
        with self._life:
            self._is_closed = True
            self._end()

    def _answer(self, request: Request) -> object:
        """Have the worker answer, or the one that takes its place after the same messages."""
        while True:
            try:
                if self._is_dead:
                    self._log.take_back()
                    self._start()
                    self.wait_until_ready()
                    for earlier in self._log.again():
                        self._ask(earlier)
                return self._ask(request)
            except (EOFError, OSError):
                self._note_death(self._names[request.node])

    def _note_death(self, name: str) -> None:
        self._is_dead, self._deaths = True, self._deaths + 1
        line = f"worker {self._number} {self._how_it_ended()} while it worked for {name}"
        if self._is_closed or self._deaths == _MAX_DEATHS:
            raise ConfigError(
                "AGFL-CONFIG-282",
                f"--engine processes: {line}, {self._deaths} times in one exchange; go on with --resume",
            )
        log.warning("%s; it is started again", line)

    def _start(self) -> None:
        ours, its = socket.socketpair()
        with its, self._life:
            if self._is_closed:
                raise EOFError
            self._process = launch(its.fileno())
            self._connection = Connection(ours.detach())
            self._is_dead = False
            self._sent.clear()
        with suppress(OSError):
            self._connection.send(self._begin)

    def _ask(self, request: Request) -> object:
        """Send a request, without the objects that the worker has, and return the answer."""
        unsent = {key: None if key in self._sent else content for key, content in request.objects.items()}
        self._sent |= unsent.keys()
        self._connection.send(replace(request, objects=unsent))
        return self._receive()

    def _receive(self) -> object:
        """Return the next answer; log lines before it go to the loggers of this process."""
        while isinstance(found := self._connection.recv(), LogLine):
            logging.getLogger(found.logger).log(found.level, "%s", found.text)
        return found

    def _end(self) -> int:
        """End the process, if it has not ended; return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _how_it_ended(self) -> str:
        code = self._end()
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
