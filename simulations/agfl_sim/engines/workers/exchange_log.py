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
from agfl_protocol.messages.secure_wire import AGREE, UNMASK
from agfl_sim.engines.opened_owners import BEGINS
from agfl_sim.engines.simulated_owners import NODES_FOLDER, SimulatedOwners
from agfl_sim.engines.workers.messages import Request
from agfl_sim.engines.workers.repeated_draws import SECRET_BYTES


@dataclass
class _UnderWay:
    """Of one node. ledger: None for plain sums; ledger_size: before the exchange; answered: in their order."""

    ledger: Path | None
    ledger_size: int
    secret: bytes = field(repr=False)
    answered: list[Request] = field(default_factory=list)


class ExchangeLog:
    """Of one worker; folder: of the run."""

    def __init__(self, owners: SimulatedOwners, folder: Path) -> None:
        self._is_secure = owners.is_secure
        self._last_kind = UNMASK if owners.simulate_masks else AGREE
        self._folder = folder / NODES_FOLDER
        self._nodes: dict[int, _UnderWay] = {}

    def begin(self, node: int, name: str, kind: str) -> bytes | None:
        """Note that an owner's node will be asked; return what it draws from, where an exchange begins."""
        if kind not in BEGINS:
            return None
        ledger = self._folder / name / LEDGER_FILE if self._is_secure else None
        size = ledger.stat().st_size if ledger is not None and ledger.exists() else 0
        self._nodes[node] = _UnderWay(ledger, size, secrets.token_bytes(SECRET_BYTES))
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
        for exchange in self._nodes.values():
            if exchange.ledger is not None and exchange.ledger.exists():
                os.truncate(exchange.ledger, exchange.ledger_size)

    def again(self) -> Iterator[Request]:
        """Yield what was answered of exchanges under way."""
        for exchange in self._nodes.values():
            yield from exchange.answered
