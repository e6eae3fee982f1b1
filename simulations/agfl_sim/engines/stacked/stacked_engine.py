"""The engine that trains several owners together, as one computation in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_client.training.device import AUTO
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_sim.engines.engine import Engine
from agfl_sim.engines.opened_owners import OpenedOwners, OwnersGrid, PopulationGrid
from agfl_sim.engines.simulated_owners import OwnersOfPopulation
from agfl_sim.engines.stacked.refusals import refuse_unstackable
from agfl_sim.engines.stacked.rendezvous import Seat, Together
from agfl_sim.population import Population


class StackedEngine(Engine):
    """As inline, but nodes that are asked to train meet, `size` of them at a time, and train as one."""

    def __init__(
        self,
        config: RunConfig,
        owners: Sequence[Path] | Population,
        device: str = AUTO,
        num_workers: int | None = None,
        *,
        simulate_masks: bool = True,
        size: int,
    ) -> None:
        """num_workers: how many groups train at a time; if omitted, one for each processor, and one on a GPU.

        Raises:
            AgflError: as `Engine`.
        """
        super().__init__(config, owners, device, num_workers, simulate_masks=simulate_masks)
        self._size = size

    def _prepare(self) -> None:
        refuse_unstackable(self._config)

    def _open_grid(self, folder: Path) -> AbstractContextManager[Grid]:
        groups = self._num_workers or (usable_cpus() if self._owners.device == "cpu" else 1)
        owners, together = self._owners.owners, Together(self._size, groups)
        nodes, num_threads = OpenedOwners(self._owners, folder, trainer=together), groups * self._size
        grid: _Meeting
        if isinstance(owners, OwnersOfPopulation) and not self._owners.is_secure:
            grid = _MeetingOfPopulation(owners.population, nodes, owners.ids, num_threads)
        else:
            ids = owners.ids if isinstance(owners, OwnersOfPopulation) else list(owners)
            grid = _Meeting(nodes, ids, num_threads, is_secure=self._owners.is_secure)
        grid.together = together
        return grid


class _Meeting(OwnersGrid):
    """Gives a seat to each node that is asked to train, in the order of the messages."""

    together: Together

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As of any grid."""
        messages = list(messages)
        nodes = [message.metadata.dst_node_id for message in messages if message.metadata.message_type == wire.TRAIN]
        assert len(set(nodes)) == len(nodes), "a node has one seat"
        self._seat_of = dict(zip(nodes, self.together.seats(len(nodes)), strict=True))
        try:
            return super().push_messages(messages)
        except BaseException:  # Ctrl-C, too: those who have come would wait for the others for ever
            for seat in self._seat_of.values():
                seat.leave()
            raise

    def _submit(self, message: Message, message_id: str) -> Future[Message]:
        seat = self._seat_of.get(message.metadata.dst_node_id)
        future = self._pool.submit(self._deliver_at, seat, message, message_id)
        if seat is not None:  # it may refuse, fail, or be dropped before it has begun
            future.add_done_callback(lambda _: seat.leave())
            del self._seat_of[message.metadata.dst_node_id]
        return future

    def _deliver_at(self, seat: Seat | None, message: Message, message_id: str) -> Message:
        with self.together.at(seat):
            return self._deliver(message, message_id)


class _MeetingOfPopulation(PopulationGrid, _Meeting):
    """Of a population's nodes."""
