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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from agfl_client.parallel import group
from agfl_client.parallel.link import Begin, Line, Ready
from agfl_client.training.deadline import NO_DEADLINE, Deadline

_PROGRAM = "from agfl_client.parallel.rank import main; main()"
_START_S, _END_S, _MOMENT_S = 120.0, 5.0, 5.0
log = logging.getLogger("agfl.client")


class Ranks:
    """The ranks of one node, itself among them; a process has one such group at a time.

    devices: of each; num_threads: PyTorch's, of each of the others; plugins, pretrained: as the node's.
    """

    def __init__(
        self,
        devices: Sequence[str],
        num_threads: int = 1,
        plugins: tuple[str, ...] = (),
        pretrained: Path | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self._num_threads, self._plugins, self._pretrained = num_threads, plugins, pretrained
        self._lines: list[Line] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._held = ExitStack()

    @property
    def others(self) -> Sequence[Line]:
        """The lines to all ranks but this one; none before `start`."""
        return self._lines

    @property
    def pids(self) -> list[int]:
        """The processes of all ranks but this one."""
        return [process.pid for process in self._processes]

    def start(self, deadline: Deadline = NO_DEADLINE) -> None:
        """Have all ranks there, in one group.

        Raises:
            RankLostError: one of them ends, or they do not meet, by the deadline at most; `end` says how they ended.
        """
        if self._processes:
            return
        # Closed to other users, as what `mkdtemp` makes is; who cannot read it does not know where the ranks meet.
        folder = Path(self._held.enter_context(TemporaryDirectory(prefix="agfl-ranks-")))
        meeting = folder / "store", group.MEET_S, secrets.token_bytes(group.SECRET_BYTES)
        begins = [
            Begin(rank, self.devices, self._num_threads, self._plugins, self._pretrained, *meeting)
            for rank in range(len(self.devices))
        ]
        for _ in begins[1:]:
            ours, its = socket.socketpair()
            with its:
                self._processes.append(launch(its.fileno(), self._num_threads))
            self._lines.append(Line.over(ours, group.SILENT_S))
        self.tell(*begins[1:])
        loaded = deadline.within(_START_S)
        for line in self._lines:
            ready = line.receive(loaded.left())
            assert isinstance(ready, Ready), ready
        group.join(replace(begins[0], meet_s=deadline.within(group.MEET_S).left()))
        if self.devices[0] == "cpu":
            self._held.close()  # all have met, and a node that is killed leaves nothing; NCCL meets there again
        log.info("%d ranks train together: this process and %s", len(begins), ", ".join(map(str, self.pids)))

    def tell(self, *contents: object) -> None:
        """Send each rank its own, or all of them the one; raises RankLostError where one is gone."""
        for i, line in enumerate(self._lines):
            line.send(contents[i % len(contents)])

    @contextmanager
    def bounded(self, deadline: Deadline) -> Iterator[None]:
        """Kill the other ranks a moment after the deadline, so that nothing that is done with them takes longer."""
        over = threading.Event()

        def watch() -> None:
            wait = min(deadline.left() + _MOMENT_S, threading.TIMEOUT_MAX)
            while not over.wait(wait):
                wait = 1.0  # once more, for those that were being started
                for process in self._processes:
                    process.kill()

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def end(self) -> list[str]:
        """End all ranks, in whatever they do; return how those ended that had ended by themselves, or hung."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        killed = Deadline().within(_END_S)
        codes = [_ended(process, killed) for process in self._processes]
        group.leave()
        for line in self._lines:
            line.close()
        self._lines, self._processes = [], []
        self._held.close()
        names = [f"rank {rank} {_how(code)}" for rank, code in enumerate(codes, start=1)]
        return [name for name, code in zip(names, codes, strict=True) if code]


def _ended(process: subprocess.Popen[bytes], killed: Deadline) -> int:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(killed.left())
    process.kill()
    return process.wait()


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def launch(descriptor: int, num_threads: int) -> subprocess.Popen[bytes]:
    """Start a rank whose line to us is a descriptor; it finds the modules that this process finds."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(descriptor)],
        stdin=subprocess.PIPE,
        pass_fds=[descriptor],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(num_threads)},
    )
