"""What this node has said, in every run: on disk before it leaves, and what follows from it for the next request.

No exchange is answered again in which a vector left, whatever is restarted; and for each owner the ledger knows how
many sums there were with and without it, which is what repeats can give away of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from agfl_client.ledger.ledger_file import LedgerFile
from agfl_client.ledger.ledger_state import ANNOUNCED, APPROVED, LEFT, OPENED, SIGNED, Asked, History, Run
from agfl_client.policy import Policy
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.errors import require


class Ledger(History):
    """The ledger of one node, the owner's `own_name`, for the one process that holds its keys.

    Raises:
        ConfigError, IdentityError: as `LedgerFile`.
    """

    def __init__(self, folder: Path, own_name: str) -> None:
        self._file = LedgerFile(folder)
        super().__init__(self._file.past, own_name)
        self._file.past.clear()

    def approve(self, run_id: str, plan_hash: str) -> None:
        """Note under which plan a run is served from now on; nothing happens where that is known."""
        if self.plan(run_id) != plan_hash:
            self._add(APPROVED, {"run": run_id, "plan": plan_hash})

    def check_announce(self, exchange: ExchangeId, policy: Policy, stage: str = "") -> None:
        """Check that an exchange may be answered.

        Raises:
            ProtocolViolation: a later one was answered, or a vector left in it, or its round was answered too often.
        """
        run = self._runs.get(exchange.run_id, Run())
        last = run.last
        if last is not None:
            is_newer, is_same = exchange.exchange > last.exchange, (exchange, stage) == (last, run.stage)
            may_repeat = is_same and not self.has_left(exchange.run_id, exchange.exchange)
            rule = f"must come after round {last.round} exchange {last.exchange}"
            require(is_newer or may_repeat, "AGFL-SECURE-013", f"exchange: {rule}, got {exchange}")
        for name, counts, bound in (
            ("announcements_per_round", run.announcements, policy.announcements_per_round),
            ("uploads_per_round", run.uploads, policy.uploads_per_round),
        ):
            # How many the owner permits stays its own.
            rule = f"must be among the exchanges of a round that this owner's {name} allows"
            require(counts[stage, exchange.round] < bound, "AGFL-SECURE-014", f"exchange: {rule}, got {exchange}")

    def announce(self, exchange: ExchangeId, asked: Asked, policy: Policy) -> None:
        """Check, and note durably, that an exchange is being answered (trip 1).

        Raises:
            ProtocolViolation: as `check_announce`.
            ConfigError: the ledger cannot be written, so nothing may leave. The same of all that follow.
        """
        self.check_announce(exchange, policy, asked.stage)
        self._add(ANNOUNCED, _place(exchange) | asked.to_fields())

    def leave(self, exchange: ExchangeId, dealers: Collection[str]) -> None:
        """Note that this node's vector leaves (trip 3), in a sum over `dealers`, U2, or fewer."""
        run = self._current(exchange)
        require(
            not self.has_left(exchange.run_id, exchange.exchange),
            "AGFL-SECURE-015",
            f"exchange: a vector left in it, got {exchange}",
        )
        self._add(LEFT, _place(exchange) | {"names": sorted(dealers)}, run)

    def sign(self, exchange: ExchangeId, survivors: Collection[str]) -> None:
        """Note that this node signs (trip 4) that `survivors`, U3, are in the sum."""
        run = self._current(exchange)
        require(
            self.has_left(exchange.run_id, exchange.exchange),
            "AGFL-SECURE-016",
            f"exchange: no vector left in it, got {exchange}",
        )
        require(not run.has_signed, "AGFL-SECURE-017", f"exchange: must be signed once, got {exchange}")
        dealers = self._names_of(run, run.dealers)
        require(
            set(survivors) <= dealers,
            "AGFL-SECURE-018",
            f"survivors: must be among those whose vectors were to come, got {exchange}",
        )
        self._add(SIGNED, _place(exchange) | {"lost": sorted(dealers - set(survivors))}, run)

    def open(self, exchange: ExchangeId) -> None:
        """Note that this node gives its shares (trip 5), so that the sum can be opened."""
        run = self._current(exchange)
        require(run.has_signed, "AGFL-SECURE-019", f"exchange: must be signed before it is opened, got {exchange}")
        require(not run.is_opened, "AGFL-SECURE-020", f"exchange: must be opened once, got {exchange}")
        self._add(OPENED, _place(exchange), run)

    def _current(self, exchange: ExchangeId) -> Run:
        run = self._runs.get(exchange.run_id, Run())
        require(
            run.last == exchange, "AGFL-SECURE-021", f"exchange: must be the last one that was answered, got {exchange}"
        )
        return run

    def _add(self, event: str, fields: Mapping[str, Any], run: Run | None = None) -> None:
        entry = self._file.append(event, fields)
        (run or self._run(fields["run"])).take(entry)


def _place(exchange: ExchangeId) -> dict[str, Any]:
    return {"run": exchange.run_id, "round": exchange.round, "exchange": exchange.exchange}
