"""What a worker's nodes were asked in the exchange under way, so that another worker can take its place in it.

A plain reply is all that a node does in an exchange. With secure sums it holds secrets from trip to trip, which no file
has: they are drawn again, and the messages so far are played again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agfl_client.ledger.ledger_file import LEDGER_FILE
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT
from agfl_protocol.messages.secure_wire import AGREE, UNMASK
from agfl_sim.engines.simulated_owners import NODES_FOLDER, SimulatedOwners
from agfl_sim.engines.workers.messages import Request
from agfl_sim.engines.workers.repeated_draws import SECRET_BYTES

BEGINS = frozenset({wire.TRAIN, wire.EVALUATE, COUNT})  # kinds of messages with which an exchange begins at a node


@dataclass
class _UnderWay:
    """Of one node. ledger_size: before the exchange, None where there is no ledger; answered: in their order."""

    ledger_size: int | None
    secret: bytes = field(repr=False)
    answered: list[Request] = field(default_factory=list)


class ExchangeLog:
    """Of one worker; folder: of the run."""

    def __init__(self, owners: SimulatedOwners, folder: Path) -> None:
        self._is_secure = owners.is_secure
        self._last_kind = UNMASK if owners.simulate_masks else AGREE
        self._ledgers = {
            number: folder / NODES_FOLDER / owner.name / LEDGER_FILE for number, owner in owners.owners.items()
        }
        self._nodes: dict[int, _UnderWay] = {}

    def begin(self, node: int, kind: str) -> bytes | None:
        """Note that a node will be asked; return the secret that it draws from, where an exchange begins."""
        if kind not in BEGINS:
            return None
        size = self._ledgers[node].stat().st_size if self._is_secure else None
        self._nodes[node] = _UnderWay(size, secrets.token_bytes(SECRET_BYTES))
        return self._nodes[node].secret

    def answered(self, kind: str, request: Request) -> None:
        """Note that a node has answered a request."""
        if request.node not in self._nodes:
            return
        if kind == self._last_kind or not self._is_secure:
            del self._nodes[request.node]  # it is done with the exchange, and holds nothing of it
        else:
            self._nodes[request.node].answered.append(request)

    def take_back(self) -> None:
        """Cut off what the ledgers say of exchanges under way; no node of the worker is there."""
        for node, exchange in self._nodes.items():
            if exchange.ledger_size is not None:
                os.truncate(self._ledgers[node], exchange.ledger_size)

    def again(self) -> Iterator[Request]:
        """Yield what was answered of exchanges under way."""
        for exchange in self._nodes.values():
            yield from exchange.answered
