"""Who is there: the NAMES of the nodes that are connected."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models.errors import WireError
from agfl_protocol import wire
from agfl_server.messaging import ask_nodes
from agfl_server.observer import Observer

_IDENTIFY_TIMEOUT_S = 10.0
_ASK_AGAIN_S = 60.0  # a node that did not say who it is is not asked, nor waited for, before
_POLL_S = 0.1


@dataclass
class ConnectedNodes:
    """Maps NAMES to the node ids of the moment; asks each new node who it is, until it has said so.

    registered_name: the NAME under which a node's key was admitted; None where the transport knows none.
    """

    grid: Grid
    observer: Observer
    registered_name: Callable[[int], str | None] | None = None
    _names: dict[int, str | None] = field(default_factory=dict)
    _ask_at: dict[int, float] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The NAMES of all nodes that were ever connected; asks nobody."""
        return frozenset(name for name in self._names.values() if name is not None)

    def connected(self) -> dict[str, int]:
        """Return {NAME: node id} of the nodes that are there now, sorted by name."""
        online = list(self.grid.get_node_ids())
        now = time.monotonic()
        self._identify([n for n in online if n not in self._names and now >= self._ask_at.get(n, now)])
        named = {name: node for node in online if (name := self._names.get(node)) is not None}
        return dict(sorted(named.items()))

    def wait_for(
        self, needed: int, excluded: Collection[str] = (), among: Collection[str] | None = None
    ) -> dict[str, int]:
        """Return the connected nodes but those `excluded` by NAME, once there are at least `needed`.

        among: no others are wanted.
        """
        shown = -1
        while len(nodes := {k: v for k, v in self.connected().items() if _is_wanted(k, excluded, among)}) < needed:
            if len(nodes) != shown:
                shown = len(nodes)
                self.observer.waiting(shown, needed)
            time.sleep(_POLL_S)
        return nodes

    def _identify(self, nodes: list[int]) -> None:
        if not nodes:
            return
        requests = [Message(wire.IdentifyRequest().to_record(), node, wire.IDENTIFY) for node in nodes]
        self._ask_at |= dict.fromkeys(nodes, time.monotonic() + _ASK_AGAIN_S)
        for node, reply in ask_nodes(self.grid, requests, _IDENTIFY_TIMEOUT_S):
            try:
                if reply.has_error():
                    raise WireError(reply.error.reason or "no reason given")
                name = wire.IdentifyReply.from_record(reply.content).name
            except WireError as error:  # its owner may start it anew under the same node id
                self.observer.refused(f"node {node}", str(error))
                continue
            registered = self.registered_name(node) if self.registered_name else name
            if name != registered:
                self._names[node] = None
                self.observer.refused(f"node {node}", f"name: must be {registered!r} as registered, got {name!r}")
                continue
            if name in self._names.values():
                self._forget(name)
            self._names[node] = name
            self.observer.connected(name)

    def _forget(self, name: str) -> None:
        """A node that comes back under a new node id replaces its old one."""
        self._names = {node: known for node, known in self._names.items() if known != name}


def _is_wanted(name: str, excluded: Collection[str], among: Collection[str] | None) -> bool:
    return name not in excluded and (among is None or name in among)
