"""Nodes that are opened when they are asked and closed again, so that memory does not grow with the owners."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock

from flwr.app import Message
from flwr.clientapp import ClientApp

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_models.errors import AgflError
from agfl_protocol.local_trainer import LocalTrainer
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT
from agfl_protocol.secagg.draws import OS_DRAWS, Draws
from agfl_server.rounds.sampling import place_of
from agfl_sim.engines.grid import InProcessGrid, LocalGrid
from agfl_sim.engines.simulated_owners import OwnersOfPopulation, SimulatedOwners
from agfl_sim.population import Population

MAX_OPEN = 256
BEGINS = frozenset({wire.TRAIN, wire.EVALUATE, COUNT})  # kinds of messages with which an exchange begins at a node


class NotOpened(Exception):
    """An owner of the simulation cannot be opened. It is no AgflError: with one its node would answer.

    reason: in one line.
    """

    def __init__(self, reason: AgflError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class OpenedOwners(Mapping[int, Node]):
    """The owners' nodes by id. Those that were asked last are open; what a node keeps for good is in the run's folder.

    limit: how many stay open, beside those that `hold` names. draws_of: where a node's secrets of secure sums come
    from, if not from the operating system. trainer: as of `Node`, one for all.

    Raises:
        AgflError: as `SimulatedOwners.node`, of any owner that has a file already.
        NotOpened: later, or of a population: the run ends, since one without such owners would be another one.
    """

    def __init__(
        self,
        owners: SimulatedOwners,
        folder: Path,
        limit: int = MAX_OPEN,
        draws_of: Callable[[int], Draws] = lambda number: OS_DRAWS,
        trainer: LocalTrainer | None = None,
    ) -> None:
        self._owners, self._folder, self._limit, self._draws_of = owners, folder, limit, draws_of
        self._trainer = trainer
        self._roster = owners.signing_roster
        self._open: OrderedDict[int, Node] = OrderedDict()
        self._held: frozenset[int] = frozenset()
        self._lock = Lock()
        if not isinstance(owners.owners, OwnersOfPopulation):
            try:
                for number in self:  # so that what stops a node stops the run before it begins
                    self[number]
            except NotOpened as stopped:
                raise stopped.reason from None

    def hold(self, numbers: Iterable[int]) -> None:
        """Keep these open: in a secure sum a node has secrets from trip to trip that no file has."""
        self._held = frozenset(numbers)

    def __getitem__(self, number: int) -> Node:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        try:
            node = self._owners.node(number, self._roster, self._folder, self._draws_of(number), self._trainer)
        except AgflError as error:
            raise NotOpened(error) from error
        with self._lock:
            self._open[number] = node
            over = max(0, len(self._open) - self._limit)
            for done in list(islice((one for one in self._open if one not in self._held and one != number), over)):
                del self._open[done]
        return node

    def __iter__(self) -> Iterator[int]:
        return iter(self._owners.owners)

    def __len__(self) -> int:
        return len(self._owners.owners)

    @property
    def num_open(self) -> int:
        """How many are open now."""
        return len(self._open)


class OwnersGrid(InProcessGrid):
    """Brings messages to the nodes of an engine; one ClientApp finds the node of each."""

    def __init__(self, nodes: Mapping[int, Node], ids: Sequence[int], num_workers: int, *, is_secure: bool) -> None:
        super().__init__({}, num_workers, waits_for_all=True)
        self._node_ids, self._is_secure, self._owners = ids, is_secure, nodes
        self._app = create_client_app(lambda context: nodes[context.node_id])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As of any grid."""
        messages = list(messages)
        if self._is_secure and isinstance(self._owners, OpenedOwners):
            begun = {message.metadata.dst_node_id for message in messages if message.metadata.message_type in BEGINS}
            if begun:
                self._owners.hold(begun)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As of any grid; raises AgflError where an owner cannot be opened."""
        try:
            return super().pull_messages(message_ids)
        except NotOpened as stopped:
            raise stopped.reason from stopped.reason.__cause__

    def _app_of(self, node: int) -> ClientApp:
        return self._app


class Populous(LocalGrid):
    """What makes a grid a `PopulousGrid`: the server invites a few of a population, and others are never looked at."""

    population: Population

    @property
    def names(self) -> Sequence[str]:
        """As of the protocol."""
        return self.population.names

    def node_of(self, name: str) -> int:
        """As of the protocol."""
        place = place_of(name, self.names)
        assert place is not None, name
        return int(self._node_ids[place])


class PopulationGrid(Populous, OwnersGrid):
    """A grid of a population's nodes in this process."""

    def __init__(self, population: Population, nodes: Mapping[int, Node], ids: range, num_workers: int) -> None:
        super().__init__(nodes, ids, num_workers, is_secure=False)
        self.population = population
