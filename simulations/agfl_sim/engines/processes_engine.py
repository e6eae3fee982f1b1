"""The engine that has as many worker processes as processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agfl_models.machine import usable_cpus
from agfl_sim.engines.workers.process_link import ProcessLink
from agfl_sim.engines.workers.workers_engine import WorkersEngine, Workplace


class ProcessesEngine(WorkersEngine):
    """Worker processes, each with one thread of PyTorch and the nodes of some owners for the whole run."""

    name = "processes"

    @contextmanager
    def _open_workplace(self, folder: Path) -> Iterator[Workplace]:
        yield Workplace(usable_cpus(), lambda is_first: ProcessLink())
