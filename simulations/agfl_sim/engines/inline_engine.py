"""The engine that trains in this process, with a thread a processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_client.training.device import AUTO
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer
from agfl_server.run.sittings import SittingLog
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.simulated_owners import SimulatedOwners, forget_exchange


class InlineEngine:
    """This process: one node an owner, as many at a time as there are processors."""

    def __init__(
        self, config: RunConfig, owners: Sequence[Path], device: str = AUTO, num_workers: int | None = None
    ) -> None:
        """num_workers: threads, as many as processors if omitted. Raises as `SimulatedOwners.of`."""
        self._num_workers = num_workers or usable_cpus()
        self._config, self._owners = config, SimulatedOwners.of(config, owners, device)
        self.roster = self._owners.signing_roster

    def run(self, folder: Path, *, resume: bool, observer: Observer, sitting: SittingLog | None = None) -> None:
        """Run the federation to its last round; raises as `run_federation`."""
        if resume:
            forget_exchange(self._config, self._owners.roster, folder)  # before the nodes read their ledgers
        nodes = {number: create_client_app(node) for number, node in self._nodes(folder).items()}
        with InProcessGrid(nodes, self._num_workers, waits_for_all=True) as grid:
            run_federation(
                grid,
                self._config,
                folder,
                resume=resume,
                observer=observer,
                roster=self.roster,
                sitting=sitting,
            )

    def _nodes(self, folder: Path) -> dict[int, Node]:
        return self._owners.nodes(folder)
