"""What an engine costs a round: processor seconds of its process and of all below it, and the model that it made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def cpu_s() -> float:
    """Return the processor seconds of this process and of all below it, also of those that have ended."""
    ticks = 0
    for process in tree(os.getpid())[1:]:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, and those of children that it has waited for
    own = os.times()
    return time.process_time() + own.children_user + own.children_system + ticks / _TICKS


def pss_mb(root: int) -> float:
    """Return the memory of a process and of all below it, pages that several hold divided among them."""
    total = 0
    for process in tree(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def available_mb() -> float:
    """Return the memory that processes can still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024


class Meter:
    """Made before the first round, `round_ends` is called after each; what was measured is in a folder after the last.

    The first round is not counted: it warms up.
    """

    def __init__(self, rounds: int, out: Path) -> None:
        self._rounds, self.out = rounds, out
        self._cpu: list[float] = []
        self._wall: list[float] = []
        self._model: NDArray[np.float32] | None = None

    def round_ends(self, model: NDArray[np.float32]) -> None:
        """Note the time; model: (d,). What comes after the last round, such as an evaluation, is not counted."""
        if len(self._cpu) == self._rounds:
            return
        self._cpu.append(cpu_s())
        self._wall.append(time.monotonic())
        if self._model is None:
            self._model = model.copy()
        if len(self._cpu) == self._rounds:
            self._report()

    def _report(self) -> None:
        """Write the seconds of each round after the first, and the model after the first."""
        assert self._model is not None
        self.out.mkdir(exist_ok=True)
        np.save(self.out / "model.npy", self._model)
        found = {"cpu": np.diff(self._cpu).tolist(), "wall": np.diff(self._wall).tolist()}
        (self.out / "report.json").write_text(json.dumps(found))
