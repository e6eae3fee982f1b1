"""A round that is given up takes its exchange with it: whatever is asked for next has a number of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agfl_models.errors import RoundError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_server.aggregation.aggregator import AttemptFailed
from agfl_server.rounds.attempts import Request, RunContext, sum_in_attempts
from agfl_server.rounds.journal import Entry, Journal
from agfl_server.rounds.observer import Observer
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_sim.engines.grid import InProcessGrid

NAMES = tuple(f"owner-{i}" for i in range(5))


class AllThere(ConnectedNodes):
    """Everybody, always."""

    def connected(self) -> dict[str, int]:
        """Return them."""
        return {name: i for i, name in enumerate(NAMES)}


@dataclass
class Silent:
    """Nobody announces keys, so that no exchange is spent; asked: under which numbers."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def sum(self, grid: Any, cohort: Any, request: RoundRequest, *rest: Any) -> Any:
        """Fail."""
        self.asked.append((request.round, request.exchange))
        raise AttemptFailed("AGFL-ROUND-000", "U1: must be at least 4, got 0", {})


def test_what_follows_a_round_that_was_given_up_has_another_number(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = run_config("aggregation.type=secure", "aggregation.min_cohort=null", "aggregation.max_attempts=2")
    plan, journal, silent, grid = (
        Plan.of(config.client_plan, "run", NAMES, 4),
        Journal(tmp_path),
        Silent(),
        InProcessGrid({}, 1),
    )
    journal.begin("run")
    nodes = AllThere(grid, Observer())
    context = RunContext(config, grid, nodes, silent, Observer(), 4, journal, plan)  # type: ignore[arg-type]

    def ask(wanted: Request, *, train: bool) -> None:
        def broadcast(entry: Entry, room: int) -> tuple[RoundRequest, Any]:
            quantizer = QuantizationPlan(2, room)
            numbers = plan.run_id, wanted.round, entry.exchange, plan.hash, config.client_plan.to_json()
            model = np.zeros(1, np.float32)
            return RoundRequest(*numbers, model, quantizer, train=train, evaluate=not train), None

        with pytest.raises(RoundError, match="failed in 2 attempts"):
            sum_in_attempts(context, wanted, broadcast, lambda _, lanes: lambda: lanes)

    ask(Request(1, 0, Kind.SAMPLED), train=True)
    ask(Request(1, 0, Kind.EXACT, all_owners=True), train=False)
    ask(Request(2, 0, Kind.SAMPLED), train=True)
    assert silent.asked == [(1, 1), (1, 1), (1, 2), (1, 2), (2, 3), (2, 3)], "a retry alone keeps its number"
