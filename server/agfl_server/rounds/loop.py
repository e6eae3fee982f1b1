"""The round loop: sample > broadcast > sum > decode > step > evaluate > checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from agfl_models.errors import RoundError
from agfl_models.model.families import build_model
from agfl_server.rounds import rollback
from agfl_server.rounds.cohort_sums import Federation
from agfl_server.rounds.observer import Row
from agfl_server.rounds.rows import CENTRAL, completed, round_row
from agfl_server.rounds.state import ServerState
from agfl_server.rounds.step import step
from agfl_server.transport.clock import clock_of


def run_rounds(
    federation: Federation, state: ServerState, save: Callable[[ServerState, list[Row]], ServerState]
) -> ServerState:
    """Run all rounds that are left and evaluate the last model; return the final state.

    `save` gets the state after each round, with the rows of metrics that became complete, and returns it as it goes on;
    it must be durable then, since a run resumes from what was saved last.

    Raises:
        RoundError: a round failed `aggregation.max_attempts` times.
        DivergedError: the model, or the numbers of too many owners, are not finite.
    """
    config = federation.context.config
    while state.round < config.num_rounds:
        # Nothing is measured twice: a run that goes on where one ended begins with a model that was evaluated.
        evaluate = state.round % config.evaluation.every == 0 and state.row["eval/loss"] is None
        state = measured(federation, state) if evaluate else state
        state, complete = train_round(federation, state, evaluate)
        state = save(state, [complete])
        federation.context.journal.drop_kept()
    if state.row["eval/loss"] is None:
        state = evaluate_round(federation, state)
        state = _judged(federation, state.round, *rollback.at_end(federation.optimizer, federation.methods, state))
    state = measured(federation, state)
    state = save(state, [state.row])
    federation.context.journal.drop_kept()
    federation.context.journal.close(state.round)  # nothing is left of it to go on with
    return state


def train_round(federation: Federation, state: ServerState, evaluate: bool) -> tuple[ServerState, Row]:
    """One round of training. Return the next state and the completed row of the previous one.

    Where `evaluate` is set, the model that is broadcast is evaluated in the same sum, before clients train it.
    """
    observer, nodes, clock = federation.context.observer, federation.context.nodes, clock_of(federation.context.grid)
    started = clock.now() - nodes.waited_s
    found = federation.sum_up(federation, state, train=True, evaluate=evaluate)
    after = step(federation, state, found)
    seconds = clock.now() - nodes.waited_s - started
    row = round_row(federation.task, federation.methods, after.round, found, seconds)
    previous = completed(federation.task, federation.methods, state.row, found) if evaluate else state.row
    if evaluate:
        observer.evaluated(previous)
    observer.round_finished(row)
    after = replace(after, row=row)
    for follow in federation.after_round:
        after = follow(after, found, previous["eval/loss"] if evaluate else None)
    judged = previous if evaluate else None
    after, is_back = rollback.after_round(federation.optimizer, federation.methods, state, after, judged)
    if is_back and not federation.context.plan.is_by_group:  # there the sums of several groups made the model
        federation.context.suspects.note_refuted()
    return _judged(federation, state.round, after, is_back), previous


def evaluate_round(federation: Federation, state: ServerState) -> ServerState:
    """Evaluate the model of `state` in an exchange of its own; return the state with the completed row.

    On all validation text of the owners in whole groups; on examples drawn afresh where no group is there whole, or
    where owners hold different parts of the model.
    """
    full = federation.rings is None and federation.context.has_whole_group()
    try:
        found = federation.sum_up(federation, state, train=False, evaluate=True, full=full)
    except RoundError:
        if not full or not federation.context.plan.groups:
            raise
        found = federation.sum_up(federation, state, train=False, evaluate=True)
    row = completed(federation.task, federation.methods, state.row, found)
    federation.context.observer.evaluated(row)
    return replace(state, exchange=found.cohort.exchange, row=row)


def measured(federation: Federation, state: ServerState) -> ServerState:
    """Return the state whose row has what the watcher measures of its model, once."""
    if any(name.startswith(CENTRAL) for name in state.row):
        return state
    found = federation.context.observer.measured(state.round, partial(_built, federation, state))
    return replace(state, row={**state.row, **{CENTRAL + name: value for name, value in found.items()}})


def _built(federation: Federation, state: ServerState) -> nn.Module:
    model = build_model(federation.context.config.model, seed=0)
    federation.layout.load(model, state.model)
    return model.eval()


def _judged(federation: Federation, number: int, state: ServerState, is_back: bool) -> ServerState:
    """Say so where the model of round `number` was given up for the one that was confirmed."""
    if is_back:
        federation.context.observer.rolled_back(number, state.confirmed.round, state.confirmed.loss)
    return state
