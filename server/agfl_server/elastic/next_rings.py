"""Elastic models after a round: which rings the next one trains, and a ring that is closed is as before it opened."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_models.model.rings import Rings
from agfl_protocol.config.elastic_config import ElasticConfig
from agfl_protocol.methods.elastic import Elastic
from agfl_protocol.optimizers.server_optimizer import ServerOptimizer
from agfl_server.elastic.per_ring import without_ring
from agfl_server.elastic.ring_plan import RingState, after_round
from agfl_server.rounds.cohort_sums import RoundSum
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import ServerState


@dataclass(frozen=True)
class NextRings:
    """Plans the rings of an elastic model."""

    config: ElasticConfig
    rings: Rings
    optimizer: ServerOptimizer
    min_cohort: int
    observer: Observer

    def __call__(self, state: ServerState, summed: RoundSum, loss: float | None) -> ServerState:
        """Return the state with the rings of the next round; loss: on validation text, where the round evaluated."""
        before = RingState.read(state.methods[Elastic.name], self.config)
        rings = after_round(before, self.config, summed.mean.metrics, loss, self.min_cohort)
        if (rings.open, rings.by_tier) != (before.open, before.by_tier):
            self.observer.rings_planned(rings.open, [self.config.widths[k - 1] for k in rings.by_tier])
        state = replace(state, methods={**state.methods, Elastic.name: rings.written})
        if rings.open >= before.open:
            return state
        model, optimizer = without_ring(before.open, self.rings, self.optimizer, state.model, state.optimizer)
        return replace(state, model=model, optimizer=optimizer)
