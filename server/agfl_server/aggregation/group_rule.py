"""A round in which each group of the plan has a sum of its own, and the geometric median of their means is the step.

An owner that leaves its range decides what its own group says, and no more (RFA, Pillutla et al. 2022,
arXiv:1912.13445, with groups in the place of owners). The price: the server learns the sum of each group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import ImplausibleSum, RoundError
from agfl_protocol.plans.groups import Names
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.update import Total, Vector
from agfl_server.aggregation.aggregator import CohortSum
from agfl_server.rounds.attempts import RunContext
from agfl_server.rounds.cohort_sums import (
    Federation,
    RoundSum,
    checked,
    codec_of,
    decoded,
    kind_of_sum,
    sum_of_cohort,
)
from agfl_server.rounds.state import ServerState

MIN_GROUPS = 3  # of two, nobody can tell which one lies
_STEPS, _NEAR = 100, 1e-3  # of Weiszfeld's algorithm; distances are at least this part of their median
_CHUNK = 2**16  # elements


@dataclass
class _Groups:
    """Who has said what in this round. lied: groups whose sum no honest owners have, and suspects."""

    all: tuple[Names, ...]
    sums: dict[Names, RoundSum] = field(default_factory=dict)
    lied: set[Names] = field(default_factory=set)

    def are_enough(self, more: Collection[Names] = (), lied: Collection[Names] = ()) -> bool:
        """Whether these sums settle the round, or would with `more`: any one of them may still be a liar's."""
        known = {*self.sums, *self.lied, *more, *lied}
        return len(known) >= max(len(self.all) // 2 + 1, MIN_GROUPS) and len({*self.sums, *more}) >= MIN_GROUPS - 1


def sum_of_groups(
    federation: Federation, state: ServerState, *, train: bool, evaluate: bool, full: bool = False
) -> RoundSum:
    """Return what more than half of the groups say, each in an exchange of its own; others are left out of the round.

    Groups that are not there are waited for where too few others are; not for a `full` evaluation.

    Raises:
        RoundError: too few groups have a sum after `max_attempts` tries; with the reason of the last.
        DivergedError: the last one's numbers are not finite.
    """
    context, asked = federation.context, {"train": train, "evaluate": evaluate, "full": full}
    groups = _Groups(context.plan.groups)
    last: RoundError | None = None
    state = _take_kept(federation, state, groups, asked)
    for attempt in range(context.config.aggregation.max_attempts):
        if attempt > 0 and groups.are_enough():
            break
        for group in _wait_for_groups(context, state, groups, asked):
            try:
                codec, total, cohort = sum_of_cohort(federation, state, group=group, **asked)
            except ImplausibleSum as error:
                groups.lied.add(group)
                last = error
            except RoundError as error:
                last = error
            else:
                _keep(context, state, group, cohort, asked)
                cohort = replace(cohort, lanes=cohort.lanes[:0].copy())  # decoded: not held for each group
                groups.sums[group] = decoded(federation, state, codec, total, cohort, train=train, evaluate=evaluate)
                state = replace(state, exchange=cohort.exchange)
        if len(groups.sums) + len(groups.lied) == len(groups.all):
            break
    if groups.are_enough():
        return _joined(federation, state, list(groups.sums.values()), train=train, evaluate=evaluate)
    raise last or RoundError("AGFL-ROUND-012", f"round {state.round + 1}: too few groups are there")


def geometric_median(points: Sequence[Vector]) -> Vector:
    """Return the point (d,) whose distances to all n points (d,) add up to the least, by Weiszfeld's algorithm.

    It is a mean of them with other weights, and inner products (n, n) say all distances.
    """
    n, products = len(points), _inner_products(points)

    def distances(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return those (n,) from a weighted mean to each point."""
        parts = np.eye(n) - weights
        squares: NDArray[np.float64] = np.einsum("ij,jk,ik->i", parts, products, parts)
        return np.sqrt(np.maximum(squares, 0))

    apart = np.array([distances(one).sum() for one in np.eye(n)])
    found = np.full(n, 1 / n)
    if apart.min() > 0:
        found = 1 / apart / (1 / apart).sum()  # a far one counts for little from the first
    for _ in range(_STEPS):
        lengths = distances(found)
        if not np.median(lengths) > 0:  # most are this very point
            break
        inverse = 1 / np.maximum(lengths, _NEAR * np.median(lengths))
        found = inverse / inverse.sum()
    result = np.zeros_like(points[0])
    for weight, point in zip(found, points, strict=True):
        result += np.float32(weight) * point
    return result


def _inner_products(points: Sequence[Vector]) -> NDArray[np.float64]:
    """Return those (n, n) of the points' differences to the first: what they have in common does not blur them."""
    products = np.zeros((len(points), len(points)))
    for start in range(0, points[0].size, _CHUNK):
        part = np.stack([point[start : start + _CHUNK] for point in points]).astype(np.float64)
        part -= part[0].copy()
        products += part @ part.T
    return products


def _wait_for_groups(
    context: RunContext, state: ServerState, groups: _Groups, asked: Mapping[str, bool]
) -> Sequence[Names]:
    """Return the groups that are to be asked, once so many are there that the round can be settled; note who is not.

    That of an exchange which a crash has cut short comes first, so that it goes on, then whose turn is next. Those that
    may lie are left out, as outvoted, where enough others are there.
    """
    entry = context.journal.current(state.exchange)

    def turn(group: Names) -> tuple[bool, int]:
        place = groups.all.index(group) - entry.exchange
        return frozenset(entry.cohort).isdisjoint(group), place % len(groups.all)

    is_exact = kind_of_sum(context.config, **asked) is Kind.EXACT
    noted: list[str] | None = None
    while True:
        there = frozenset(context.nodes.connected())
        for names in (there - context.suspects.left_out(), there):
            able = [
                group
                for group in groups.all
                if group not in groups.sums
                and group not in groups.lied
                and len(names.intersection(group)) >= (len(group) if is_exact else context.min_cohort)
            ]
            suspected = {group for group in groups.all if there.intersection(group) - names} - {*able, *groups.sums}
            if groups.are_enough(able, suspected):
                groups.lied |= suspected
                return sorted(able, key=turn)
        if asked["full"]:
            return ()
        missing = sorted({name for group in groups.all for name in group} - there)
        if missing != noted:
            context.observer.missing(missing)
            noted = missing
        context.nodes.pause()


def _joined(
    federation: Federation, state: ServerState, each: Sequence[RoundSum], *, train: bool, evaluate: bool
) -> RoundSum:
    """Return the sum of all groups, with the geometric median in the place of its mean, and medians of losses."""
    codec = codec_of(federation, state, federation.context.plan.room(all_owners=True), train=train, evaluate=evaluate)
    cohort, total = _together([one.cohort for one in each]), reduce(_added, (one.total for one in each))
    whole = decoded(federation, state, codec, total, cohort, train=train, evaluate=evaluate)
    return replace(
        whole,
        mean=replace(whole.mean, delta=geometric_median([one.mean.delta for one in each])),
        trained=_median([one.trained for one in each]),
        evaluated=_median([one.evaluated for one in each]),
    )


def _added(one: Total, other: Total) -> Total:
    """Return the sum over two cohorts."""
    metrics = {name: value + other.metrics[name] for name, value in one.metrics.items()}
    return Total(one.delta + other.delta, one.count + other.count, one.weight + other.weight, metrics)


def _together(sums: Sequence[CohortSum]) -> CohortSum:
    """Return what several exchanges brought, without their lanes."""
    return replace(
        max(sums, key=lambda one: one.exchange),
        survivors=tuple(sorted(name for one in sums for name in one.survivors)),
        refused={name: why for one in sums for name, why in one.refused.items()},
        bytes_up=sum(one.bytes_up for one in sums),
        bytes_down=sum(one.bytes_down for one in sums),
        silent=frozenset().union(*(one.silent for one in sums)),
    )


def _median(losses: Sequence[float | None]) -> float | None:
    found = [loss for loss in losses if loss is not None]
    return median(found) if found else None


def _keep(context: RunContext, state: ServerState, group: Names, cohort: CohortSum, asked: Mapping[str, bool]) -> None:
    """Write a sum, so that its owners need not send once more where the server is killed in this round."""
    facts = {
        "asked": _identity(context, state, group, asked),
        "exchange": cohort.exchange,
        "survivors": cohort.survivors,
        "bytes": [cohort.bytes_up, cohort.bytes_down],
    }
    records = context.journal.kept()
    records.write(_name(context, group), {"facts": json.dumps(facts).encode(), "lanes": cohort.lanes.data.cast("B")})


def _take_kept(federation: Federation, state: ServerState, groups: _Groups, asked: Mapping[str, bool]) -> ServerState:
    """Take the sums that this round had before a crash; return the state with the last exchange of them behind it."""
    context = federation.context
    for group in groups.all:
        content = context.journal.kept().read(_name(context, group))
        facts: dict[str, Any] = {} if content is None else json.loads(content["facts"])
        if content is None or facts["asked"] != _identity(context, state, group, asked):
            continue
        lanes: Lanes = np.frombuffer(content["lanes"], np.uint64)
        codec = codec_of(
            federation, state, context.plan.room(all_owners=True), train=asked["train"], evaluate=asked["evaluate"]
        )
        total = checked(federation, codec, codec.read(lanes))
        cohort = CohortSum(facts["exchange"], lanes[:0].copy(), tuple(facts["survivors"]), {}, *facts["bytes"])
        groups.sums[group] = decoded(
            federation, state, codec, total, cohort, train=asked["train"], evaluate=asked["evaluate"]
        )
    return replace(state, exchange=max([state.exchange, *(one.cohort.exchange for one in groups.sums.values())]))


def _identity(context: RunContext, state: ServerState, group: Names, asked: Mapping[str, bool]) -> list[Any]:
    """Return what tells a sum from all others: of whom, of which round, model and question."""
    model = hashlib.sha256(state.model.tobytes()).hexdigest()
    return [state.run_id, state.round, context.config.hash, model, list(group), dict(asked)]


def _name(context: RunContext, group: Names) -> str:
    return f"group-{context.plan.groups.index(group)}"
