"""How a run begins, or goes on from where it was: the same for the run in OUTPUT and for each candidate of a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agfl_models.model.rings import Rings
from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.optimizers.server_optimizer import ServerOptimizer
from agfl_server.aggregation.group_rule import sum_of_groups
from agfl_server.elastic.next_rings import NextRings
from agfl_server.elastic.per_ring import PerRing
from agfl_server.rounds.attempts import RunContext
from agfl_server.rounds.cohort_sums import AfterRound, Federation, sum_of_round
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState, initial_state
from agfl_server.run.run_folder import RunFolder


def open_run(
    context: RunContext, folder: RunFolder, *, is_new: bool, cost: Row | None = None
) -> tuple[Federation, ServerState]:
    """Return the fixed parts of the run in `folder`, and its state: saved before round 1, or the last that was saved.

    cost: what learning the tokenizer took, for the row of round 0.

    Raises:
        CheckpointError: the state cannot be written or read, or belongs to another run.
    """
    config = context.config
    rings = config.build_rings()
    optimizer = build_optimizer(
        config.aggregation.server_optimizer,
        lambda inner: inner if rings is None else PerRing(inner, rings, context.min_cohort),
    )
    layout, state = initial_state(config, optimizer, context.journal.run_id)
    if is_new:
        state = replace(state, row={**state.row, **(cost or {})})
        folder.save(config, state, [])
    else:
        state = folder.resume(config)
    federation = Federation(
        context,
        config.build_task(),
        layout,
        optimizer,
        sum_of_groups if context.plan.is_by_group else sum_of_round,
        methods_of(Round(config.client_plan, rings=rings, config=config)),
        tuple(_after_round(context, rings, optimizer)),
        rings,
    )
    return federation, state


def _after_round(context: RunContext, rings: Rings | None, optimizer: ServerOptimizer) -> Iterator[AfterRound]:
    config = context.config
    if rings is not None and config.elastic is not None:
        yield NextRings(config.elastic, rings, optimizer, context.min_cohort, context.observer)
