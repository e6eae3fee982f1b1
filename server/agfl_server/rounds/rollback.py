"""Rollback: a model that the owners' losses refute is given up for the last one that they confirmed.

Its loss on validation text, where the round before measured it, or on training text, which every round's sum holds,
may be above that of recent ones by so much and no more. Nothing is measured for this, and no model a second time:
what a restored one was found to be is known. No one round's word decides, since a liar can lower a loss, too: what
counts is the median of the last three. Clips are then halved (`clipping`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low
from typing import TYPE_CHECKING

import numpy as np

from agfl_protocol.methods.method import Method
from agfl_protocol.optimizers.server_optimizer import ServerOptimizer
from agfl_protocol.update import Vector
from agfl_server.rounds.observer import Row

if TYPE_CHECKING:
    from agfl_server.rounds.state import ServerState

# Nats a prediction. The losses of honest rounds, each of other batches and owners, were at most 0.2 above the median of
# three before; validation sees the same text again, and the last model is kept whatever comes of it.
TRAIN_RISE, EVAL_RISE, LAST_RISE = 1.0, 0.5, 0.1
_KEPT = 3
_CHUNK = 2**16  # elements
_EVAL = "eval/"


@dataclass(frozen=True)
class Confirmed:
    """model: the last one that losses confirmed, (d,), that of round `round`; empty before the first, or on disk.

    metrics: what its evaluation found, if it had one; evaluated, trained: the last losses that were not refuted.
    """

    model: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    round: int = 0
    metrics: Row = field(default_factory=dict)
    evaluated: tuple[float, ...] = ()
    trained: tuple[float, ...] = ()

    @property
    def loss(self) -> float | None:
        """On validation text, where it is known."""
        return self.metrics.get("eval/loss")


def judge(
    confirmed: Confirmed, model: Vector, number: int, trained: float | None, row: Row | None
) -> tuple[Confirmed, bool]:
    """Return what is confirmed now, and whether the model of round `number` is refuted.

    trained: the loss of training from it; row: with the metrics of its evaluation, None where it had none.
    """
    evaluated = row["eval/loss"] if row is not None else None
    if _is_above(evaluated, confirmed.evaluated, EVAL_RISE) or _is_above(trained, confirmed.trained, TRAIN_RISE):
        # The next losses are those of the restored model: had a lie lowered the last ones, they would refute it, too.
        return replace(confirmed, trained=()), bool(confirmed.model.size)
    is_new = not _are_equal(model, confirmed.model)
    loss, past, rise = trained, confirmed.trained, 0.0
    if evaluated is not None:  # of two the lower one, but of three no single lie
        loss, past, rise = evaluated, (median_low(confirmed.evaluated or (math.inf,)),), LAST_RISE
    is_worse = _is_above(loss, past, rise)
    if is_new and not is_worse:
        metrics = {} if row is None else {key: value for key, value in row.items() if key.startswith(_EVAL)}
        confirmed = replace(confirmed, model=model, round=number, metrics=metrics)
    return replace(
        confirmed,
        evaluated=_with(confirmed.evaluated, evaluated),
        trained=_with(confirmed.trained, trained),
    ), False


def after_round(
    optimizer: ServerOptimizer, methods: Sequence[Method], before: ServerState, after: ServerState, row: Row | None
) -> tuple[ServerState, bool]:
    """Return the state `after` a round, or that with the confirmed model, and whether the one `before` it is refuted.

    row: of the model before, with its evaluation; None where the round did not evaluate.
    """
    confirmed, is_refuted = judge(before.confirmed, before.model, before.round, after.row["train/loss"], row)
    if is_refuted:
        return _restored(optimizer, methods, replace(after, confirmed=confirmed)), True
    return replace(after, confirmed=confirmed), False


def at_end(optimizer: ServerOptimizer, methods: Sequence[Method], state: ServerState) -> tuple[ServerState, bool]:
    """As `after_round` of the last state, whose row has its evaluation: it may be worse by `LAST_RISE` only."""
    loss, confirmed = state.row["eval/loss"], state.confirmed
    is_worse = confirmed.loss is not None and _is_above(loss, (confirmed.loss,), LAST_RISE)
    if confirmed.model.size and (is_worse or _is_above(loss, confirmed.evaluated, EVAL_RISE)):
        return _restored(optimizer, methods, state), True
    return state, False


def _restored(optimizer: ServerOptimizer, methods: Sequence[Method], state: ServerState) -> ServerState:
    """Return the state with the confirmed model: momentum, and the states of owners, begin anew."""
    confirmed, model = state.confirmed, np.array(state.confirmed.model)
    return replace(
        state,
        model=model,
        optimizer=optimizer.restarted(model, state.optimizer),
        methods={method.name: method.restarted(state.of(method)) for method in methods},
        row={**state.row, **_cleared(state.row), **confirmed.metrics},
    )


def _cleared(row: Row) -> Row:
    return {key: None for key in row if key.startswith(_EVAL)}


def _are_equal(one: Vector, other: Vector) -> bool:
    """Whether two models are the same, by their first parts as a rule: the confirmed one may be on disk."""
    parts = (slice(start, start + _CHUNK) for start in range(0, one.size, _CHUNK))
    return one.size == other.size and all(np.array_equal(one[part], other[part]) for part in parts)


def _is_above(loss: float | None, past: tuple[float, ...], rise: float) -> bool:
    """Whether a loss is no number, or above the median of past ones by more than `rise`; not where there is none."""
    if loss is None:
        return False
    return not math.isfinite(loss) or (bool(past) and loss > median(past) + rise)


def _with(past: tuple[float, ...], loss: float | None) -> tuple[float, ...]:
    return past if loss is None else (*past, loss)[-_KEPT:]
