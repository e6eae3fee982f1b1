"""The node's side of its other ranks: starts their processes, keeps them warm from round to round, and ends them."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from agfl_client.parallel import group
from agfl_client.parallel.link import Begin, Line, Ready

_PROGRAM = "from agfl_client.parallel.rank import main; main()"
_START_S, _END_S = 120.0, 5.0
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

    def start(self) -> None:
        """Have all ranks there, in one group.

        Raises:
            Exception: one of them ends, or they do not meet; `end` says how they ended.
        """
        if self._processes:
            return
        # Closed to other users, as what `mkdtemp` makes is; who cannot read it does not know where the ranks meet.
        folder = Path(self._held.enter_context(TemporaryDirectory(prefix="agfl-ranks-")))
        secret = secrets.token_bytes(group.SECRET_BYTES)
        begins = [
            Begin(rank, self.devices, self._num_threads, self._plugins, self._pretrained, folder / "store", secret)
            for rank in range(len(self.devices))
        ]
        for _ in begins[1:]:
            ours, its = socket.socketpair()
            with its:
                self._processes.append(launch(its.fileno(), self._num_threads))
            self._lines.append(Line(Connection(ours.detach())))
        self.tell(*begins[1:])
        for line in self._lines:
            ready = line.receive(_START_S)
            assert isinstance(ready, Ready), ready
        group.join(begins[0])
        log.info("%d ranks train together: this process and %s", len(begins), ", ".join(map(str, self.pids)))

    def tell(self, *contents: object) -> None:
        """Send each rank its own, or all of them the one; raises OSError where one is gone."""
        for i, line in enumerate(self._lines):
            line.send(contents[i % len(contents)])

    def end(self) -> list[str]:
        """End all ranks, in whatever they do; return how those ended that had ended by themselves, or hung."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        codes = [_ended(process) for process in self._processes]
        group.leave()
        for line in self._lines:
            line.close()
        self._lines, self._processes = [], []
        self._held.close()
        names = [f"rank {rank} {_how(code)}" for rank, code in enumerate(codes, start=1)]
        return [name for name, code in zip(names, codes, strict=True) if code]


def _ended(process: subprocess.Popen[bytes]) -> int:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_END_S)
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
