"""What every engine does: one run of the federation on the Grid that the engine opens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from flwr.serverapp import Grid

from agfl_client.training.device import AUTO
from agfl_client.training.part import SPARE_PARTS
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.secagg.parameters import MAX_MEMBERS
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer
from agfl_server.run.sittings import SittingLog
from agfl_sim.engines.simulated_owners import OwnersOfPopulation, SimulatedOwners, forget_exchange
from agfl_sim.population import Population
from agfl_sim.virtual_time.timed import timed


class Engine(ABC):
    """Where the clients of one run work. It is made before the owners' files are, and refuses what it cannot run."""

    def __init__(
        self,
        config: RunConfig,
        owners: Sequence[Path] | Population,
        device: str = AUTO,
        num_workers: int | None = None,
        *,
        simulate_masks: bool = True,
    ) -> None:
        """num_workers: how many train at a time; as many as there are processors if omitted.

        simulate_masks: where False, sums that are secure are added up without masks, to the same integers.

        Raises:
            AgflError: as `SimulatedOwners.of` and `devices`.
        """
        self._config, self._num_workers = config, num_workers
        self._owners = SimulatedOwners.of(config, owners, device, simulate_masks=simulate_masks)
        self._devices = self._owners.devices(config)
        self.roster = self._owners.signing_roster if self._owners.roster else None
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Refuse what this engine cannot run; raises ConfigError."""

    def run(self, folder: Path, *, resume: bool, observer: Observer, sitting: SittingLog | None = None) -> None:
        """Run the federation to its last round in a folder that the caller holds, as `RunFolder.hold`.

        Raises:
            AgflError: as `run_federation`; or no client can work.
        """
        if resume:
            forget_exchange(self._config, self._owners.roster, folder)  # before the nodes read their ledgers
        try:
            with (
                self._open_grid(folder) as grid,
                timed(grid, self._config, self._devices, folder, resume=resume) as timed_grid,
            ):
                run_federation(
                    timed_grid,
                    self._config,
                    folder,
                    resume=resume,
                    observer=observer,
                    roster=self.roster,
                    owners=self._planned(),
                    sitting=sitting,
                    secure_sum=self._owners.secure_sum,
                    is_held=True,
                )
        finally:
            SPARE_PARTS.clear()  # in a notebook the next run's module may be built otherwise by the same name

    def _planned(self) -> Sequence[str] | None:
        """Return whom a plan of plain sums names, which nobody's draw goes by; None for whoever is there."""
        if not isinstance(self._owners.owners, OwnersOfPopulation) or self._owners.is_secure:
            return None
        names = self._owners.owners.population.names
        return [names[number] for number in range(min(len(names), MAX_MEMBERS))]

    @abstractmethod
    def _open_grid(self, folder: Path) -> AbstractContextManager[Grid]:
        """Return the Grid of the owners' nodes, which keep what they keep in the run's folder."""
