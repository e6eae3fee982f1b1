"""The round loop: sample > broadcast > sum > decode > step > evaluate > checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from agfl_models.errors import RoundError
from agfl_protocol.methods import drift
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.transforms import quantization
from agfl_protocol.update import Total, square_sum
from agfl_server.aggregation.aggregator import CohortSum
from agfl_server.aggregation.group_rule import sum_of_groups
from agfl_server.methods.per_ring import without_ring
from agfl_server.methods.ring_plan import after_round
from agfl_server.rounds import rollback
from agfl_server.rounds.cohort_sums import DivergedError, Federation, RoundSum, sum_of_round
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState, empty_row


def run_rounds(
    federation: Federation, state: ServerState, save: Callable[[ServerState, list[Row]], None]
) -> ServerState:
    """Run all rounds that are left and evaluate the last model; return the final state.

    `save` gets the state after each round, with the rows of metrics that became complete; it must be durable when it
    returns, since a run resumes from what was saved last.

    Raises:
        RoundError: a round failed `aggregation.max_attempts` times.
        DivergedError: the model, or the numbers of too many owners, are not finite.
    """
    config = federation.parties.config
    while state.round < config.num_rounds:
        # Nothing is measured twice: a run that goes on where one ended begins with a model that was evaluated.
        evaluate = state.round % config.evaluation.every == 0 and state.row["eval/loss"] is None
        state, complete = train_round(federation, state, evaluate)
        save(state, [complete])
        federation.parties.journal.drop_kept()
    if state.row["eval/loss"] is None:
        state = evaluate_round(federation, state)
        state = _noted(federation, state.round, *rollback.at_end(federation.optimizer, federation.methods, state))
    save(state, [state.row])
    federation.parties.journal.drop_kept()
    federation.parties.journal.close(state.round)  # nothing is left of it to go on with
    return state


def train_round(federation: Federation, state: ServerState, evaluate: bool) -> tuple[ServerState, Row]:
    """One round of training. Return the next state and the completed row of the previous one.

    Where `evaluate` is set, the model that is broadcast is evaluated in the same sum, before clients train it.
    """
    nodes = federation.parties.nodes
    started, waited_s = time.monotonic(), nodes.waited_s
    task = federation.task
    sum_up = sum_of_groups if federation.parties.plan.is_by_group else sum_of_round
    found = sum_up(federation, state, train=True, evaluate=evaluate)
    mean = found.mean
    used = _used(federation, state, found.cohort, found.total)
    with np.errstate(over="ignore", invalid="ignore"):
        model, optimizer_state = federation.optimizer.step(state.model, mean, state.optimizer)
    if not np.isfinite(model).all():
        raise DivergedError(f"round {state.round + 1}: the model must be finite after the server's step; it is not")
    row = {
        **empty_row(task, federation.methods),
        "round": state.round + 1,
        **task.train_metrics(mean.metrics),
        "train/loss": found.trained,
        **_round_metrics(mean, found.cohort),
        **found.row,
        "seconds": round(time.monotonic() - started - (nodes.waited_s - waited_s), 4),
    }
    complete = _complete(federation, state.row, found) if evaluate else state.row
    federation.parties.observer.round_finished(row)
    chosen = federation.optimizer.chosen(optimizer_state)
    if chosen is not None and chosen != federation.optimizer.chosen(state.optimizer):
        federation.parties.observer.optimizer_chosen(chosen)
    states = {one.name: one.stepped(found.methods.get(one.name, {}), state.model, model) for one in federation.methods}
    stepped = replace(
        state,
        round=state.round + 1,
        exchange=found.cohort.exchange,
        model=model,
        optimizer=optimizer_state,
        methods=states,
        norm=square_sum(found.total.delta) ** 0.5 / found.total.count,
        row=row,
        used=used,
    )
    loss = complete["eval/loss"] if evaluate else None
    after = _with_next_rings(federation, stepped, mean, loss)
    after, is_back = rollback.after_round(
        federation.optimizer, federation.methods, state, after, complete if evaluate else None
    )
    if is_back and not federation.parties.plan.is_by_group:  # there the sums of several groups made the model
        federation.parties.suspects.note_refuted()
    return _noted(federation, state.round, after, is_back), complete


def _noted(federation: Federation, number: int, state: ServerState, is_back: bool) -> ServerState:
    """Say so where the model of round `number` was given up for the one that was confirmed."""
    if is_back:
        federation.parties.observer.rolled_back(number, state.confirmed.round, state.confirmed.loss)
    return state


def _with_next_rings(federation: Federation, state: ServerState, mean: Total, loss: float | None) -> ServerState:
    """Plan which rings the next round trains; take back a ring that is closed."""
    parties, elastic = federation.parties, federation.parties.config.elastic
    if federation.rings is None or elastic is None or state.rings is None:
        return state
    rings = after_round(state.rings, elastic, mean.metrics, loss, parties.min_cohort)
    if (rings.open, rings.by_tier) != (state.rings.open, state.rings.by_tier):
        parties.observer.rings_planned(rings.open, [elastic.widths[k - 1] for k in rings.by_tier])
    if rings.open >= state.rings.open:
        return replace(state, rings=rings)
    optimizer = federation.optimizer
    model, after = without_ring(state.rings.open, federation.rings, optimizer, state.model, state.optimizer)
    return replace(state, rings=rings, model=model, optimizer=after)


def evaluate_round(federation: Federation, state: ServerState) -> ServerState:
    """Evaluate the model of `state` in an exchange of its own; return the state with the completed row.

    On all validation text of the owners in whole groups; on examples drawn afresh where no group is there whole, or
    where owners hold different parts of the model.
    """
    full = federation.rings is None and federation.parties.has_whole_group()
    sum_up = sum_of_groups if federation.parties.plan.is_by_group else sum_of_round
    try:
        found = sum_up(federation, state, train=False, evaluate=True, full=full)
    except RoundError:
        if not full or not federation.parties.plan.groups:
            raise
        found = sum_up(federation, state, train=False, evaluate=True)
    row = _complete(federation, state.row, found)
    return replace(state, exchange=found.cohort.exchange, row=row)


def _used(
    federation: Federation, state: ServerState, cohort_sum: CohortSum, total: Total
) -> Mapping[int, tuple[str, ...]]:
    """Return where each owner was used last, if owners keep state; nowhere, once one has lost its own."""
    if drift.drift_of(federation.parties.config) is None:
        return {}
    lost = round(total.metrics[drift.LOST])
    if lost:
        federation.parties.observer.states_lost(lost)
        return {}
    latest = set(cohort_sum.survivors)
    kept = {cohort_sum.exchange: cohort_sum.survivors}
    for exchange, names in sorted(state.used.items(), reverse=True):
        if not latest.issuperset(names):
            kept[exchange] = names
            latest |= set(names)
    return dict(sorted(kept.items()))


def _round_metrics(mean: Total, cohort_sum: CohortSum) -> dict[str, int | float | None]:
    return {
        "clients": mean.count - round(mean.metrics[DIVERGED]),
        "refused": len(cohort_sum.refused),
        "bytes_up": cohort_sum.bytes_up,
        "bytes_down": cohort_sum.bytes_down,
        "update/l2": float(np.linalg.norm(mean.delta.astype(np.float64))),
        quantization.RELATIVE_ERROR: mean.metrics[quantization.RELATIVE_ERROR],
    }


def _complete(federation: Federation, row: Row, found: RoundSum) -> Row:
    sums = found.mean.metrics
    metrics = {**federation.task.eval_metrics(sums), "eval/loss": found.evaluated}
    complete = {**row, **metrics}
    for method in federation.methods:
        complete |= method.eval_row(sums)
    federation.parties.observer.evaluated(complete)
    return complete
