"""The round loop: sample > broadcast > sum > decode > step > evaluate > checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from agfl_models.errors import ImplausibleSum, RoundError
from agfl_models.rings import Rings
from agfl_models.tasks.task import AnyTask
from agfl_protocol import drift, wire
from agfl_protocol.ring_losses import ring_losses
from agfl_protocol.transforms import clipping, coverage, quantization
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.divergence import DIVERGED
from agfl_protocol.update import Layout, Total, Vector
from agfl_server import rollback
from agfl_server.aggregator import CohortSum
from agfl_server.attempts import Parties, sum_in_attempts
from agfl_server.observer import Row
from agfl_server.per_ring import without_ring
from agfl_server.ring_plan import after_round
from agfl_server.server_optimizer import ServerOptimizer
from agfl_server.state import ServerState, empty_row


class DivergedError(RoundError):
    """The model, or what owners computed with it, is not finite: no further attempt at the round can help."""


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
        RoundError: a round failed `aggregation.max_attempts` times, or so many in a row had a sum that is not used.
        DivergedError: the model, or the numbers of too many owners, are not finite.
    """
    config, lost = federation.parties.config, 0
    while state.round < config.num_rounds:
        evaluate = state.round % config.evaluation.every == 0 and not rollback.is_known(state)
        try:
            state, complete = train_round(federation, state, evaluate)
            lost = 0
        except ImplausibleSum as error:
            lost += 1
            federation.parties.observer.implausible(state.round + 1, str(error))
            if lost == config.aggregation.max_attempts:
                raise
            state, complete = _lost_round(federation, state), state.row
        save(state, [complete])
    if state.row["eval/loss"] is None:
        state = replace(state, row=evaluate_round(federation, state))
        state = _noted(federation, state.round, *rollback.at_end(federation.optimizer, state))
    save(state, [state.row])
    return state


def _lost_round(federation: Federation, state: ServerState) -> ServerState:
    """Return the state after a round that has no step, since its sum is not used; it is not asked for again."""
    row = {**empty_row(federation.task, federation.parties.config.max_rings), "round": state.round + 1}
    return replace(state, round=state.round + 1, row=row)


def train_round(federation: Federation, state: ServerState, evaluate: bool) -> tuple[ServerState, Row]:
    """One round of training. Return the next state and the completed row of the previous one.

    Where `evaluate` is set, the model that is broadcast is evaluated in the same sum, before clients train it.
    """
    started = time.monotonic()
    task = federation.task
    codec, cohort_sum = sum_of_cohort(federation, state, train=True, evaluate=evaluate)
    total = codec.decode_checked(cohort_sum.lanes)
    _check_finite(federation, state.round + 1, total)
    bounds = state.bounds.after(total)
    counted = _counted(federation, state, cohort_sum, total)
    mean = replace(codec.decode_mean(total), owners=len(federation.parties.nodes.names | counted.keys()))
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
        model=model,
        optimizer=optimizer_state,
        bounds=bounds,
        row=row,
        counted=counted,
        previous=state.model if is_aligned else state.previous,
    )
    loss = complete["eval/loss"] if evaluate else None
    after = _with_next_rings(federation, stepped, mean, loss)
    after, is_back = rollback.after_round(federation.optimizer, state, after, complete if evaluate else None)
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


def evaluate_round(federation: Federation, state: ServerState) -> Row:
    """Evaluate the model of `state` in an exchange of its own; return the completed row."""
    codec, cohort_sum = sum_of_cohort(federation, state, train=False, evaluate=True)
    total = codec.decode_checked(cohort_sum.lanes)
    _check_finite(federation, state.round + 1, total)
    return _complete(federation, state.row, total.metrics)


def sum_of_cohort(
    federation: Federation, state: ServerState, *, train: bool, evaluate: bool
) -> tuple[UpdateCodec, CohortSum]:
    """Sample a cohort, broadcast, and sum; repeat with a new attempt while fewer than `min_cohort` updates come.

    Raises:
        RoundError: after `max_attempts` attempts, with the reasons of the last one.
    """
    config, number = federation.parties.config, state.round + 1
    models = federation.optimizer.broadcast(state.model, state.optimizer) if train else state.model
    control = _control(federation, state) if train else state.model[:0]

    def broadcast(
        cohort: Collection[str], attempt: int, refused: Collection[str]
    ) -> tuple[wire.RoundRequest, UpdateCodec]:
        layout, plan = federation.layout, state.bounds.plan(config, len(cohort))
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
        # An attempt may have failed because too few who hold a ring were left: then nobody trains more than the first.
        by_tier = state.rings.by_tier if state.rings is not None and not refused else (1,) * config.max_rings
        counted = {name: state.counted[name] for name in cohort if train and name in state.counted}
        request = wire.RoundRequest(
            state.run_id,
            number,
            attempt,
            config.to_json(),
            config.hash,
            evaluate,
            train,
            models,
            plan,
            control,
            counted,
            by_tier,
        )
        federation.parties.observer.round_started(number, config.num_rounds, len(cohort))
        return request, codec

    return sum_in_attempts(federation.parties, state.run_id, number, broadcast)


def _check_finite(federation: Federation, number: int, total: Total) -> None:
    """Say how many owners' numbers are not finite; they add nothing to the sum.

    Raises:
        DivergedError: those of fewer than `min_cohort` are.
    """
    diverged, least = round(total.metrics[DIVERGED]), federation.parties.min_cohort
    if diverged:
        federation.parties.observer.diverged(diverged)
    if total.count - diverged < least:
        raise DivergedError(
            f"round {number}: updates and losses must be finite for at least min_cohort = {least} owners, "
            f"are not for {diverged} of {total.count} (is training.optimizer.lr too large?)"
        )


def _control(federation: Federation, state: ServerState) -> Vector:
    """Return what is broadcast beside the model: what the optimizer has clients know, or the model before this one."""
    if federation.parties.config.aggregation.weighting == "alignment":
        return state.previous
    control: Vector = federation.optimizer.control(state.optimizer)
    return control


def _counted(
    federation: Federation, state: ServerState, cohort_sum: CohortSum, total: Total
) -> Mapping[str, wire.Counted]:
    """Return when each owner was counted last, where owners keep state; nobody was, once one has lost its own."""
    if drift.drift_of(federation.parties.config) is None:
        return {}
    lost = round(total.metrics[drift.LOST])
    if lost:
        federation.parties.observer.states_lost(lost)
        return {}
    return {**state.counted, **dict.fromkeys(cohort_sum.survivors, (state.round + 1, cohort_sum.attempt))}


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
