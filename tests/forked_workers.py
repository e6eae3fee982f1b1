"""Workers of the `processes` engine, forked from the process that has loaded PyTorch already: see `commands`."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from threading import Lock

from flwr.app import RecordDict
from tests.commands import forkserver

from agfl_client.node import Node
from agfl_client.parallel import elsewhere, group, link, rank
from agfl_client.parallel.link import Begin, Line
from agfl_protocol.messages.wire import RoundRequest
from agfl_sim.engines.opened_owners import OpenedOwners
from agfl_sim.engines.workers.process_worker import main


class ForkedWorker:
    """What `launch` returns, of a forked process.

    at_round: what it does first in each round of an owner, given the NAME; a function of a module.
    """

    def __init__(self, descriptor: int, at_round: Callable[..., None] | None = None, is_rank: bool = False) -> None:
        self._waiting = Lock()
        reads, writes = os.pipe()
        self.stdin = os.fdopen(writes, "wb", buffering=0)
        line, lifeline = Connection(os.dup(descriptor)), Connection(reads, writable=False)
        target = _rank_main if is_rank else _main
        self._process = forkserver.Process(target=target, args=(line, lifeline, at_round), daemon=True)
        self._process.start()
        line.close()
        lifeline.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        with self._waiting:  # of two that ask at a time, multiprocessing tells one that it is 255
            self._process.join(timeout)
            if self._process.exitcode is None:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def die_at_owner_01(name: str) -> None:
    """As a process does that takes more memory than there is."""
    if name == "owner-01":
        os.kill(os.getpid(), signal.SIGKILL)


def fail_at_owner_01(name: str) -> None:
    if name == "owner-01":
        raise ZeroDivisionError("a defect")


def keep_one_open(name: str) -> None:
    """From now on the worker closes each node but the last, and those that an exchange needs."""
    for one in gc.get_objects():
        if isinstance(one, OpenedOwners):
            one._limit = 1


def forked_rank(descriptor: int, num_threads: int) -> ForkedWorker:
    """What `agfl_client.parallel.ranks.launch` returns, of a forked process."""
    return ForkedWorker(descriptor, is_rank=True)


def forked_impostor(descriptor: int, num_threads: int) -> ForkedWorker:
    """A rank that knows all but the secret."""
    return ForkedWorker(descriptor, guess_secret, is_rank=True)


def forked_late_rank(descriptor: int, num_threads: int) -> ForkedWorker:
    """A rank that lets the node wait where they meet."""
    return ForkedWorker(descriptor, come_late, is_rank=True)


def forked_slow_leaver(descriptor: int, num_threads: int) -> ForkedWorker:
    """A rank that is slow to see that its node has told it to end."""
    return ForkedWorker(descriptor, leave_late, is_rank=True)


def leave_late() -> None:
    def leave() -> None:
        while os.read(0, 1):
            pass
        time.sleep(0.3)
        os._exit(0)

    rank._leave_with_starter = leave


def come_late() -> None:
    genuine = group.join

    def join(begin: Begin, lines: Sequence[Line]) -> None:
        time.sleep(0.5)
        genuine(begin, lines)

    group.join = join


def guess_secret() -> None:
    genuine = group.join
    group.join = lambda begin, lines: genuine(replace(begin, secret=bytes(group.SECRET_BYTES)), lines)


class ForkedElsewhere(ForkedWorker):
    """What `agfl_client.parallel.elsewhere.launch` returns, of a forked process. at_first: what it does first."""

    def __init__(self, arguments: Sequence[str], at_first: Callable[[], None] | None = None) -> None:
        self._waiting = Lock()
        reads, writes = os.pipe()
        self.stdin = os.fdopen(writes, "wb", buffering=0)
        lifeline = Connection(reads, writable=False)
        target = _elsewhere_main
        self._process = forkserver.Process(target=target, args=(list(arguments), lifeline, at_first), daemon=True)
        self._process.start()
        lifeline.close()

    def poll(self) -> int | None:
        return self._process.exitcode


def forked_elsewhere(arguments: Sequence[str], num_threads: int) -> ForkedElsewhere:
    """What `agfl_client.parallel.elsewhere.launch` returns, of a forked process."""
    return ForkedElsewhere(arguments)


def of_another_version() -> None:
    genuine = link.Join
    vars(elsewhere)["Join"] = lambda version, device: genuine("0.0.1", device)


def with_another_device() -> None:
    genuine = link.Join
    vars(elsewhere)["Join"] = lambda version, device: genuine(version, "cuda")


def _elsewhere_main(arguments: list[str], lifeline: Connection, first: Callable[[], None] | None) -> None:
    if first is not None:
        first()
    os.dup2(lifeline.fileno(), 0)
    lifeline.close()
    sys.argv = ["-c", *arguments]
    elsewhere.main()


def _rank_main(line: Connection, lifeline: Connection, first: Callable[[], None] | None) -> None:
    if first is not None:
        first()
    os.dup2(lifeline.fileno(), 0)
    lifeline.close()
    sys.argv = ["-c", str(line.fileno())]
    rank.main()


def _main(line: Connection, lifeline: Connection, at_round: Callable[[str], None] | None) -> None:
    genuine = Node.handle_round

    def handle_round(self: Node, request: RoundRequest) -> RecordDict:
        if at_round is not None:
            at_round(self.name)
        return genuine(self, request)

    Node.handle_round = handle_round  # type: ignore[method-assign]
    os.dup2(lifeline.fileno(), 0)
    lifeline.close()
    sys.argv = ["-c", str(line.fileno())]
    main()
