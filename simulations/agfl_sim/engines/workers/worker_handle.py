"""The driver's side of one worker: starts it, asks it, has another take its place where it dies, and ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from flwr.app import Message

from agfl_models import errors
from agfl_models.errors import ConfigError
from agfl_sim.engines.grid import inflated
from agfl_sim.engines.opened_owners import BEGINS
from agfl_sim.engines.simulated_owners import SimulatedOwner
from agfl_sim.engines.workers.exchange_log import ExchangeLog
from agfl_sim.engines.workers.link import Link
from agfl_sim.engines.workers.messages import Begin, Clear, Defect, LogLine, Ready, Refusal, Reply, Request

_MAX_DEATHS = 3  # in one exchange: what ended it will end it again
log = logging.getLogger("agfl.simulate")


class DefectError(Exception):
    """A node in a worker failed as none should; the text is the traceback from there."""


@dataclass(frozen=True)
class Letter:
    """A message for a node, in bytes. objects: those of which it consists, by id."""

    node: int
    kind: str
    object_id: str
    objects: Mapping[str, bytes] = field(repr=False)


class WorkerHandle:
    """A worker with the nodes of some owners, started again where it dies.

    `answer` may be called by several threads; one is served at a time. owners: all that it may be asked for; those whom
    `begin` does not name are made when they are. start: see `Workplace`.
    """

    def __init__(
        self, number: int, begin: Begin, owners: Mapping[int, SimulatedOwner], start: Callable[[bool], Link]
    ) -> None:
        self._number, self._begin, self._start_link = number, begin, start
        self._label = f"--engine {begin.engine}: worker {number}"
        self._all, self._owners = owners, dict(begin.owners.owners)
        self._told = set[int]()
        self._log = ExchangeLog(begin.owners, begin.folder)
        self._turn, self._life = threading.Lock(), threading.Lock()
        self._is_closed, self._is_dead, self._deaths = False, False, 0
        self._sent: set[str] = set()  # objects of this batch of messages that the worker has
        self._start(is_first=True)

    def wait_until_ready(self) -> None:
        """Return once its nodes are there.

        Raises:
            AgflError: one cannot be, as in this process; or the worker cannot start.
        """
        try:
            self._wait_until_ready()
        except (EOFError, OSError):
            raise ConfigError("AGFL-CONFIG-281", f"{self._label} must start, {self._link.end()}") from None

    def begin_batch(self, kind: str) -> None:
        """Have the worker forget the objects that it got: those of the messages of this kind that follow are others."""
        with self._turn:
            self._sent.clear()
            if kind in BEGINS:
                self._deaths = 0
            with suppress(OSError):  # that the worker is gone shows where it is asked
                self._link.send(Clear(is_over=kind in BEGINS))

    def answer(self, letter: Letter, message_id: str) -> Message:
        """Return a node's reply.

        Raises:
            ConfigError: the worker died too often.
            AgflError: the owner cannot be opened.
            DefectError: the node failed as none should.
        """
        node, kind = letter.node, letter.kind
        with self._turn:
            if node not in self._owners:
                self._owners[node] = self._all[node]
            secret = self._log.begin(node, self._owners[node].name, kind)
            request = Request(node, message_id, letter.object_id, letter.objects, secret)
            found = self._answer(request)
            self._log.answered(kind, request)
        _refuse(found)
        if isinstance(found, Defect):
            raise DefectError(found.trace)
        assert isinstance(found, Reply)
        return inflated(found.object_id, found.contents)

    def close(self) -> None:
        """End the worker, in whatever it does."""
        with self._life:
            self._is_closed = True
            self._link.end()

    def _wait_until_ready(self) -> None:
        found = self._receive()
        _refuse(found)
        assert isinstance(found, Ready)

    def _answer(self, request: Request) -> object:
        """Have the worker answer, or the one that takes its place after the same messages."""
        while True:
            doing = "started" if self._is_dead else "worked"
            try:
                if self._is_dead:
                    self._log.take_back()
                    self._start(is_first=False)
                    self._wait_until_ready()
                    doing = "worked"
                    for earlier in self._log.again():
                        self._ask(earlier)
                return self._ask(request)
            except (EOFError, OSError):
                # A cluster may start the replacement on the machine that took the first one down, too.
                self._note_death(f"while it {doing} for {self._owners[request.node].name}")

    def _note_death(self, doing: str) -> None:
        self._is_dead, self._deaths = True, self._deaths + 1
        line = f"{self._link.end()} {doing}"
        if self._is_closed or self._deaths == _MAX_DEATHS:
            rule = f"{line}, {self._deaths} times in one exchange; go on with --resume"
            raise ConfigError("AGFL-CONFIG-282", f"{self._label} {rule}")
        log.warning("worker %d %s; it is started again", self._number, line)

    def _start(self, *, is_first: bool) -> None:
        with self._life:
            if self._is_closed:
                raise EOFError
            self._link = self._start_link(is_first)
            self._is_dead = False
            self._sent.clear()
            self._told = set(self._begin.owners.owners)
        with suppress(OSError):
            self._link.send(self._begin)

    def _ask(self, request: Request) -> object:
        """Send a request, without the objects that the worker has, and return the answer."""
        unsent = {key: None if key in self._sent else content for key, content in request.objects.items()}
        self._sent |= unsent.keys()
        owner = None if request.node in self._told else self._owners[request.node]
        self._told.add(request.node)
        self._link.send(replace(request, objects=unsent, owner=owner))
        return self._receive()

    def _receive(self) -> object:
        """Return the next answer; log lines before it go to the loggers of this process."""
        while isinstance(found := self._link.receive(), LogLine):
            logging.getLogger(found.logger).log(found.level, "%s", found.text)
        return found


def _refuse(found: object) -> None:
    """Raise what a worker refused."""
    if isinstance(found, Refusal):
        kind: type[errors.AgflError] = getattr(errors, found.kind)
        raise kind(found.code, found.sentence)
