"""SCAFFOLD and FedDyn after a round: where each owner was used last, which tells it what state of its own counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_protocol.methods.drift import LOST
from agfl_server.rounds.cohort_sums import RoundSum
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import ServerState


@dataclass(frozen=True)
class UsedExchanges:
    """Keeps `ServerState.used`; nothing of it, once an owner has lost its state."""

    observer: Observer

    def __call__(self, state: ServerState, found: RoundSum, loss: float | None) -> ServerState:
        """Return the state with the round's exchange among those that were used."""
        lost = round(found.mean.metrics[LOST])
        if lost:
            self.observer.states_lost(lost)
            return replace(state, used={})
        latest = set(found.cohort.survivors)
        kept = {found.cohort.exchange: found.cohort.survivors}
        for exchange, names in sorted(state.used.items(), reverse=True):
            if not latest.issuperset(names):
                kept[exchange] = names
                latest |= set(names)
        return replace(state, used=dict(sorted(kept.items())))
