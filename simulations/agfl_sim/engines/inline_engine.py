"""The engine that trains in this process, with a thread a processor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from flwr.serverapp import Grid

from agfl_client.node import Node
from agfl_models.machine import usable_cpus
from agfl_sim.engines.engine import Engine
from agfl_sim.engines.opened_owners import OpenedOwners, OwnersGrid, PopulationGrid
from agfl_sim.engines.simulated_owners import OwnersOfPopulation


class InlineEngine(Engine):
    """This process: a node of each owner that is asked, as many at work at a time as there are processors."""

    def _prepare(self) -> None:
        """It runs whatever there is."""

    def _open_grid(self, folder: Path) -> AbstractContextManager[Grid]:
        nodes, num_workers = self._nodes(folder), self._num_workers or usable_cpus()
        owners, is_secure = self._owners.owners, self._owners.is_secure
        if isinstance(owners, OwnersOfPopulation):
            if not is_secure:
                return PopulationGrid(owners.population, nodes, owners.ids, num_workers)
            return OwnersGrid(nodes, owners.ids, num_workers, is_secure=True)
        return OwnersGrid(nodes, list(owners), num_workers, is_secure=is_secure)

    def _nodes(self, folder: Path) -> Mapping[int, Node]:
        return OpenedOwners(self._owners, folder)
