"""How a run begins, or goes on from where it was: the same for the run in OUTPUT and for each candidate of a search."""

from __future__ import annotations

from dataclasses import replace

from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import methods_of
from agfl_server.methods.optimizers import build_optimizer
from agfl_server.methods.per_ring import PerRing
from agfl_server.rounds.attempts import Parties
from agfl_server.rounds.cohort_sums import Federation
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState, initial_state
from agfl_server.run.run_folder import RunFolder


def open_run(
    parties: Parties, folder: RunFolder, *, is_new: bool, cost: Row | None = None
) -> tuple[Federation, ServerState]:
    """Return the fixed parts of the run in `folder`, and its state: saved before round 1, or the last that was saved.

    cost: what learning the tokenizer took, for the row of round 0.

    Raises:
        CheckpointError: the state cannot be written or read, or belongs to another run.
    """
    config = parties.config
    rings = config.build_rings()
    optimizer = build_optimizer(
        config.aggregation.server_optimizer,
        lambda inner: inner if rings is None else PerRing(inner, rings, parties.min_cohort),
    )
    layout, state = initial_state(config, optimizer, parties.journal.run_id)
    if is_new:
        state = replace(state, row={**state.row, **(cost or {})})
        folder.save(config, state, [])
    else:
        state = folder.resume(config)
    methods = methods_of(Round(config, rings=rings))
    return Federation(parties, config.build_task(), layout, optimizer, methods, rings), state
