"""The engine that has as many worker processes as processors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from agfl_client.training.device import AUTO
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer
from agfl_server.run.sittings import SittingLog
from agfl_sim.engines.processes.own_classes import own_classes
from agfl_sim.engines.processes.process_grid import ProcessGrid, shared_out
from agfl_sim.engines.processes.worker_process import WorkerProcess
from agfl_sim.engines.simulated_owners import SimulatedOwners, forget_exchange, size_of


class ProcessesEngine:
    """Worker processes, each with one thread of PyTorch and the nodes of some owners for the whole run."""

    def __init__(
        self, config: RunConfig, owners: Sequence[Path], device: str = AUTO, num_workers: int | None = None
    ) -> None:
        """num_workers: as many as processors, if omitted.

        Raises:
            ConfigError: as `SimulatedOwners.of`; or a class of the run cannot be found by another process.
        """
        self._config, self._num_workers = config, num_workers or usable_cpus()
        self._owners = SimulatedOwners.of(config, owners, device)
        self._classes = own_classes(config)
        self.roster = self._owners.signing_roster

    def run(self, folder: Path, *, resume: bool, observer: Observer, sitting: SittingLog | None = None) -> None:
        """Run the federation to its last round; raises as `run_federation`, and ConfigError for a worker that died."""
        if resume:
            forget_exchange(self._config, self._owners.roster, folder)  # before the nodes read their ledgers
        with ExitStack() as stack:
            worker_of: dict[int, WorkerProcess] = {}
            for number, nodes in enumerate(shared_out(self._costs(), self._num_workers), start=1):
                worker = WorkerProcess(number, self._owners.only(nodes), folder.resolve(), self._classes)
                stack.callback(worker.close)
                worker_of |= dict.fromkeys(nodes, worker)
            for worker in dict.fromkeys(worker_of.values()):
                worker.wait_until_ready()
            grid = stack.enter_context(ProcessGrid(worker_of))
            run_federation(
                grid,
                self._config,
                folder,
                resume=resume,
                observer=observer,
                roster=self.roster,
                sitting=sitting,
            )

    def _costs(self) -> dict[int, float]:
        """Return what each owner's round costs: as much as its text has where it trains on all of that, else the same.

        The longest are dealt out first either way, so that what the workers hold is alike.
        """
        by_size = self._config.training.local_epochs is not None
        sizes = {number: size_of(owner.path) for number, owner in self._owners.owners.items()}
        total = sum(sizes.values()) or 1
        return {number: float(size) if by_size else 1 + size / total for number, size in sizes.items()}
