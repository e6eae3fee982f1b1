"""The round loop: sample > broadcast > sum > decode > step > evaluate > checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from agfl_models.errors import ImplausibleSum, RoundError
from agfl_models.rings import Rings
from agfl_models.tasks.task import AnyTask
from agfl_protocol import drift, wire
from agfl_protocol.ring_losses import ring_losses
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.sum_kind import MAX_SAMPLED_EXAMPLES, kind_of
from agfl_protocol.transforms import clipping, coverage, quantization
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.divergence import DIVERGED
from agfl_protocol.update import Layout, Total, Vector
from agfl_server import rollback
from agfl_server.aggregator import CohortSum
from agfl_server.attempts import Parties, Request, sum_in_attempts
from agfl_server.journal import Entry
from agfl_server.observer import Row
from agfl_server.per_ring import without_ring
from agfl_server.ring_plan import after_round
from agfl_server.server_optimizer import ServerOptimizer
from agfl_server.state import ServerState, empty_row


class DivergedError(ImplausibleSum):
    """The model, or what owners computed with it, is not finite; or so one of them says."""


@dataclass(frozen=True)
class Federation:
    """The fixed parts of a run; what changes from round to round is `ServerState`. rings: of an elastic model."""

    parties: Parties
    task: AnyTask
    layout: Layout
    optimizer: ServerOptimizer
    rings: Rings | None = None


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
    if state.row["eval/loss"] is None:
        state = evaluate_round(federation, state)
        state = _noted(federation, state.round, *rollback.at_end(federation.optimizer, state))
    save(state, [state.row])
    federation.parties.journal.close(state.round)  # nothing is left of it to go on with
    return state


def train_round(federation: Federation, state: ServerState, evaluate: bool) -> tuple[ServerState, Row]:
    """One round of training. Return the next state and the completed row of the previous one.

    Where `evaluate` is set, the model that is broadcast is evaluated in the same sum, before clients train it.
    """
    started = time.monotonic()
    task = federation.task
    codec, total, cohort_sum = sum_of_cohort(federation, state, train=True, evaluate=evaluate)
    bounds = state.bounds.after(total)
    used = _used(federation, state, cohort_sum, total)
    mean = replace(codec.decode_mean(total), owners=_num_owners(federation.parties))
    with np.errstate(over="ignore", invalid="ignore"):
        model, optimizer_state = federation.optimizer.step(state.model, mean, state.optimizer)
    if not np.isfinite(model).all():
        raise DivergedError(f"round {state.round + 1}: the model must be finite after the server's step; it is not")
    row = {
        **empty_row(task, federation.parties.config.max_rings),
        "round": state.round + 1,
        **task.train_metrics(mean.metrics),
        **_round_metrics(mean, cohort_sum, codec.quantization.clip_l2),
        **_coverage(federation, mean),
        "seconds": round(time.monotonic() - started, 4),
    }
    complete = _complete(federation, state.row, mean.metrics) if evaluate else state.row
    federation.parties.observer.round_finished(row)
    chosen = federation.optimizer.chosen(optimizer_state)
    if chosen is not None and chosen != federation.optimizer.chosen(state.optimizer):
        federation.parties.observer.optimizer_chosen(chosen)
    is_aligned = federation.parties.config.aggregation.weighting == "alignment"
    stepped = replace(
        state,
        round=state.round + 1,
        exchange=cohort_sum.exchange,
        model=model,
        optimizer=optimizer_state,
        bounds=bounds,
        row=row,
        used=used,
        previous=state.model if is_aligned else state.previous,
    )
    loss = complete["eval/loss"] if evaluate else None
    after = _with_next_rings(federation, stepped, mean, loss)
    after, is_back = rollback.after_round(federation.optimizer, state, after, complete if evaluate else None)
    if is_back:
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
    try:
        _, total, cohort_sum = sum_of_cohort(federation, state, train=False, evaluate=True, full=full)
    except RoundError:
        if not full or not federation.parties.plan.groups:
            raise
        _, total, cohort_sum = sum_of_cohort(federation, state, train=False, evaluate=True)
    row = _complete(federation, state.row, total.metrics)
    return replace(state, exchange=cohort_sum.exchange, row=row)


def sum_of_cohort(
    federation: Federation, state: ServerState, *, train: bool, evaluate: bool, full: bool = False
) -> tuple[UpdateCodec, Total, CohortSum]:
    """Sample a cohort, broadcast, sum, decode; go on in the next exchange while fewer than `min_cohort` updates come.

    Raises:
        RoundError: after `max_attempts` attempts, with the reasons of the last one.
    """
    parties = federation.parties
    config, number = parties.config, state.round + 1
    models = federation.optimizer.broadcast(state.model, state.optimizer) if train else state.model
    control = _control(federation, state) if train else state.model[:0]

    def broadcast(entry: Entry, room: int) -> tuple[wire.RoundRequest, UpdateCodec]:
        layout, plan = federation.layout, state.bounds.plan(config, room)
        num_models = models.size // layout.size
        codec = UpdateCodec.for_round(
            config,
            federation.task,
            layout,
            plan,
            round_number=number,
            train=train,
            evaluate=evaluate,
            num_models=num_models,
            rings=federation.rings,
        )
        # An exchange may have failed because too few who hold a ring were left: then nobody trains more than the first.
        by_tier = state.rings.by_tier if state.rings is not None and not entry.refused else (1,) * config.max_rings
        request = wire.RoundRequest(
            run_id=state.run_id,
            round=number,
            exchange=entry.exchange,
            plan_hash=parties.plan.hash,
            config_json=config.to_json(),
            config_hash=config.hash,
            evaluate=evaluate,
            train=train,
            full=full,
            model=models,
            plan=plan,
            control=control,
            used=_as_asked(parties, state) if train else (),
            rings_by_tier=by_tier,
        )
        parties.observer.round_started(number, config.num_rounds, len(entry.cohort))
        return request, codec

    kind = kind_of(
        config,
        train=train,
        evaluate=evaluate,
        full=full,
        counts=False,
        max_sampled_examples=MAX_SAMPLED_EXAMPLES,
    )

    def decode(codec: UpdateCodec, lanes: Lanes) -> Total:
        total = codec.decode_checked(lanes)
        _check_finite(federation, total)
        return total

    # Owners send so many vectors a round and no more: where the whole text cannot be had, a draw of it must still be.
    max_attempts = 1 if full and parties.plan.groups else None
    wanted = Request(number, state.exchange, kind, all_owners=full, max_attempts=max_attempts)
    return sum_in_attempts(parties, wanted, broadcast, decode)


def _check_finite(federation: Federation, total: Total) -> None:
    """Say how many owners' numbers are not finite; they add nothing to the sum.

    Raises:
        DivergedError: those of fewer than `min_cohort` are. One owner alone may have said so of all.
    """
    diverged, least = round(total.metrics[DIVERGED]), federation.parties.min_cohort
    if diverged:
        federation.parties.observer.diverged(diverged)
    if total.count - diverged < least:
        raise DivergedError(
            f"updates and losses must be finite for at least min_cohort = {least} owners, "
            f"are not for {diverged} of {total.count} (is training.optimizer.lr too large, or does one of them lie?)"
        )


def _control(federation: Federation, state: ServerState) -> Vector:
    """Return what is broadcast beside the model: what the optimizer has clients know, or the model before this one."""
    if federation.parties.config.aggregation.weighting == "alignment":
        return state.previous
    control: Vector = federation.optimizer.control(state.optimizer)
    return control


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


def _as_asked(parties: Parties, state: ServerState) -> tuple[wire.Used, ...]:
    """Return `used` as clients get it: of secure sums they know themselves who was in one."""
    is_secure = bool(parties.plan.groups)
    return tuple((exchange, () if is_secure else names) for exchange, names in state.used.items())


def _num_owners(parties: Parties) -> int:
    """Return how many owners there are: those of the plan, or in a plain run all that ever were connected."""
    return len(parties.plan.members) if parties.plan.groups else len(parties.nodes.names)


def _round_metrics(mean: Total, cohort_sum: CohortSum, clip_l2: float) -> dict[str, int | float | None]:
    return {
        "clients": mean.count - round(mean.metrics[DIVERGED]),
        "refused": len(cohort_sum.refused),
        "bytes_up": cohort_sum.bytes_up,
        "bytes_down": cohort_sum.bytes_down,
        "update/l2": float(np.linalg.norm(mean.delta.astype(np.float64))),
        clipping.L2: clip_l2,
        clipping.FRACTION: mean.metrics[clipping.FRACTION],
        quantization.RELATIVE_ERROR: mean.metrics[quantization.RELATIVE_ERROR],
    }


def _coverage(federation: Federation, mean: Total) -> dict[str, int]:
    if federation.rings is None:
        return {}
    owners = coverage.holders(mean.metrics, len(federation.rings.widths))
    return {f"rings/owners_{k}": count for k, count in enumerate(owners, start=2)}


def _gains(federation: Federation, sums: Mapping[str, float]) -> dict[str, float | None]:
    found = ring_losses(sums, federation.parties.config.max_rings)
    return {f"rings/gain_{k}": None if loss is None else loss.gain for k, loss in enumerate(found, start=2)}


def _complete(federation: Federation, row: Row, sums: Mapping[str, float]) -> Row:
    complete = {**row, **federation.task.eval_metrics(sums), **_gains(federation, sums)}
    federation.parties.observer.evaluated(complete)
    return complete
