"""What the engines with workers have in common: which owners each worker has, and that all are ready and all end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flwr.serverapp import Grid

from agfl_sim.engines.engine import Engine
from agfl_sim.engines.simulated_owners import size_of
from agfl_sim.engines.workers.link import Link
from agfl_sim.engines.workers.messages import Begin
from agfl_sim.engines.workers.own_classes import own_classes
from agfl_sim.engines.workers.worker_grid import WorkerGrid, shared_out
from agfl_sim.engines.workers.worker_handle import WorkerHandle


@dataclass(frozen=True)
class Workplace:
    """Where workers run. num_cpus: free processors; start: starts a worker, told whether it is the first of its place.

    Where it is not, another one died, and perhaps the machine with it.
    """

    num_cpus: int
    start: Callable[[bool], Link]


class WorkersEngine(Engine):
    """Workers with the nodes of some owners each, for the whole run. name: as of `--engine`."""

    name: ClassVar[str]

    def _prepare(self) -> None:
        self._classes = own_classes(self._config, self.name)  # refused where another process cannot find one

    @abstractmethod
    def _open_workplace(self, folder: Path) -> AbstractContextManager[Workplace]:
        """Return where the workers of a run in the folder are to be."""

    @contextmanager
    def _open_grid(self, folder: Path) -> Iterator[Grid]:
        with ExitStack() as stack:
            place = stack.enter_context(self._open_workplace(folder.resolve()))
            worker_of: dict[int, WorkerHandle] = {}
            for number, nodes in enumerate(shared_out(self._costs(), self._num_workers or place.num_cpus), start=1):
                begin = Begin(self.name, self._owners.only(nodes), folder.resolve(), self._classes)
                worker = WorkerHandle(number, begin, place.start)
                stack.callback(worker.close)
                worker_of |= dict.fromkeys(nodes, worker)
            for worker in dict.fromkeys(worker_of.values()):
                worker.wait_until_ready()
            yield stack.enter_context(WorkerGrid(worker_of))

    def _costs(self) -> dict[int, float]:
        """Return what each owner's round costs: as much as its text has where it trains on all of that, else the same.

        The longest are dealt out first either way, so that what the workers hold is alike.
        """
        by_size = self._config.training.local_epochs is not None
        sizes = {number: size_of(owner.path) for number, owner in self._owners.owners.items()}
        total = sum(sizes.values()) or 1
        return {number: float(size) if by_size else 1 + size / total for number, size in sizes.items()}
