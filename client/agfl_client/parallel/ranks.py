"""The node's side of its other ranks: starts their processes, keeps them warm from round to round, and ends them."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from agfl_client.parallel import group
from agfl_client.parallel.door import Door
from agfl_client.parallel.link import FROM_RANK, Begin, Line, Ready
from agfl_client.training.deadline import NO_DEADLINE, Deadline

_PROGRAM = "from agfl_client.parallel.rank import main; main()"
_START_S, _END_S, _MOMENT_S, _LEFT_S = 120.0, 5.0, 5.0, 0.5
log = logging.getLogger("agfl.client")


@dataclass(frozen=True)
class _Rank:
    """One of the others. process: where it is this machine's; place: what the owner calls it."""

    line: Line
    place: str
    process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """Have it end: at once if it is another machine's, or it is killed."""
        if self.process is not None:
            self.process.kill()
        self.line.hang_up()


class Ranks:
    """The ranks of one node, itself among them; a process has one such group at a time.

    devices: of those of this machine; num_threads: PyTorch's, of each of the others here; plugins, pretrained: as the
    node's; others: ranks of other machines; door: where these join, None where there are none.
    """

    def __init__(
        self,
        devices: Sequence[str],
        num_threads: int = 1,
        plugins: tuple[str, ...] = (),
        pretrained: Path | None = None,
        others: int = 0,
        door: Door | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self._num_threads, self._plugins, self._pretrained = num_threads, plugins, pretrained
        self._num_elsewhere, self._door = others, door
        self._ranks: list[_Rank] = []

    @property
    def others(self) -> Sequence[Line]:
        """The lines to all ranks but this one; none before `start`."""
        return [rank.line for rank in self._ranks]

    @property
    def pids(self) -> list[int]:
        """The processes of this machine's ranks but this one."""
        return [rank.process.pid for rank in self._ranks if rank.process is not None]

    def start(self, deadline: Deadline = NO_DEADLINE) -> None:
        """Have all ranks there, in one group.

        Raises:
            RankLostError: one of them ends, or they do not meet, by the deadline at most; `end` says how they ended.
            ConfigError: a rank of another machine is not of this node's version or kind of device.
        """
        if self._ranks:
            return
        for _ in self.devices[1:]:
            ours, its = socket.socketpair()
            with its:
                process = launch(its.fileno(), self._num_threads)
            self._ranks.append(_Rank(Line(ours, FROM_RANK, group.SILENT_S), "", process))
        loaded = deadline.within(_START_S)
        address = "127.0.0.1"
        if self._door is not None:
            address = self._door.address
            came = self._door.admit(self._num_elsewhere, loaded, group.SILENT_S)
            self._ranks.extend(_Rank(line, f" at {host}") for host, line in came)
        secret, world = secrets.token_bytes(group.SECRET_BYTES), 1 + len(self._ranks)
        begins = [
            Begin(
                rank,
                world,
                self.devices[rank] if rank < len(self.devices) else "",
                address if rank < len(self.devices) else "",
                self._num_threads,
                self._plugins,
                self._pretrained if rank < len(self.devices) else None,
                group.MEET_S,
                secret,
            )
            for rank in range(world)
        ]
        self.tell(*begins[1:])
        for line in self.others:
            ready = line.receive(loaded.left())
            assert isinstance(ready, Ready), ready
        group.join(replace(begins[0], meet_s=deadline.within(group.MEET_S).left()), self.others)
        where = [str(rank.process.pid) if rank.process else rank.place.removeprefix(" at ") for rank in self._ranks]
        log.info("%d ranks train together: this process and %s", world, ", ".join(where))

    def tell(self, *contents: object) -> None:
        """Send each rank its own, or all of them the one; raises RankLostError where one is gone."""
        for i, line in enumerate(self.others):
            line.send(contents[i % len(contents)])

    @contextmanager
    def bounded(self, deadline: Deadline) -> Iterator[None]:
        """Stop the other ranks a moment after the deadline, so that nothing that is done with them takes longer."""
        over = threading.Event()

        def watch() -> None:
            wait = min(deadline.left() + _MOMENT_S, threading.TIMEOUT_MAX)
            while not over.wait(wait):
                wait = 1.0  # once more, for those that were being started
                for rank in list(self._ranks):
                    rank.stop()

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def end(self) -> list[str]:
        """End all ranks, in whatever they do; return how those ended that had ended by themselves, or hung."""
        elsewhere = [rank for rank in self._ranks if rank.process is None]
        moment = Deadline().within(_LEFT_S)  # the line of one that was lost may end after its sums
        left = [rank for rank in elsewhere if rank.line.is_left(moment.left())]
        for rank in self._ranks:
            if rank.process is None:
                rank.line.hang_up()
            else:  # which ends with its stdin, as told; one whose line ends may say first that it has lost the node
                assert rank.process.stdin is not None
                rank.process.stdin.close()
        killed = Deadline().within(_END_S)
        hows = ["was lost" if rank in left else _how_ended(rank, killed) for rank in self._ranks]
        group.leave()
        places = [f"rank {number}{rank.place}" for number, rank in enumerate(self._ranks, start=1)]
        names = [f"{place} {how}" for place, how in zip(places, hows, strict=True) if how]
        for rank in self._ranks:
            rank.line.close()
        self._ranks = []
        return names


def _how_ended(rank: _Rank, killed: Deadline) -> str:
    """Return how a rank ended that was told to, "" where it did as it was told."""
    if rank.process is None:
        return "" if rank.line.is_left(killed.left()) else "hung"
    code = _ended(rank.process, killed)
    return "" if code == 0 else f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _ended(process: subprocess.Popen[bytes], killed: Deadline) -> int:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(killed.left())
    process.kill()
    return process.wait()


def launch(descriptor: int, num_threads: int) -> subprocess.Popen[bytes]:
    """Start a rank whose line to us is a descriptor; it finds the modules that this process finds."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(descriptor)],
        stdin=subprocess.PIPE,
        pass_fds=[descriptor],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(num_threads)},
    )
