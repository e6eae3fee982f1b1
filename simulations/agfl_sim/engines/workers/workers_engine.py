"""What the engines with workers have in common: which owners each worker has, and that all are ready and all end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flwr.serverapp import Grid

from agfl_sim.engines.engine import Engine
from agfl_sim.engines.simulated_owners import OwnersOfPopulation, size_of
from agfl_sim.engines.workers.link import Link
from agfl_sim.engines.workers.messages import Begin
from agfl_sim.engines.workers.own_classes import own_classes
from agfl_sim.engines.workers.worker_grid import Dealt, WorkerGrid, WorkerPopulationGrid, shared_out
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
            place, owners = stack.enter_context(self._open_workplace(folder.resolve())), self._owners.owners
            count = self._num_workers or place.num_cpus
            is_of_population = isinstance(owners, OwnersOfPopulation)
            shares = [()] * min(count, len(owners)) if is_of_population else shared_out(self._costs(), count)
            workers = []
            for number, nodes in enumerate(shares, start=1):
                begin = Begin(self.name, self._owners.only(nodes), folder.resolve(), self._classes)
                workers.append(WorkerHandle(number, begin, owners, place.start))
                stack.callback(workers[-1].close)
            for worker in workers:
                worker.wait_until_ready()
            yield stack.enter_context(self._grid(workers, shares))

    def _grid(self, workers: Sequence[WorkerHandle], shares: Sequence[Sequence[int]]) -> WorkerGrid:
        owners = self._owners.owners
        if not isinstance(owners, OwnersOfPopulation):
            dealt = zip(workers, shares, strict=True)
            return WorkerGrid({node: worker for worker, nodes in dealt for node in nodes}, workers)
        worker_of = Dealt(owners.ids, workers)
        if self._owners.is_secure:
            return WorkerGrid(worker_of, workers)
        return WorkerPopulationGrid(owners.population, worker_of, workers)

    def _costs(self) -> dict[int, float]:
        """Return what each owner's round costs: as much as its text has where it trains on all of that, else the same.

        The longest are dealt out first either way, so that what the workers hold is alike.
        """
        by_size = self._config.training.local_epochs is not None
        sizes = {number: size_of(owner.path) for number, owner in self._owners.owners.items()}
        total = sum(sizes.values()) or 1
        return {number: float(size) if by_size else 1 + size / total for number, size in sizes.items()}
