"""A round in which each group of the plan has a sum of its own, and the geometric median of their means is the step.

An owner that leaves its range decides what its own group says, and no more (RFA, Pillutla et al. 2022,
arXiv:1912.13445, with groups in the place of owners). The price: the server learns the sum of each group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from statistics import median

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import RoundError
from agfl_protocol.groups import Names
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.update import Total, Vector, inner_product
from agfl_server.aggregator import CohortSum
from agfl_server.attempts import Parties
from agfl_server.cohort_sums import Federation, RoundSum, decoded, sum_of_cohort
from agfl_server.state import ServerState

MIN_GROUPS = 3  # of two, nobody can tell which one lies
_STEPS, _NEAR = 100, 1e-3  # of Weiszfeld's algorithm; distances are at least this part of their median


def sum_of_groups(federation: Federation, state: ServerState, evaluate: bool) -> RoundSum:
    """Return what more than half of the groups say, each in an exchange of its own; others are left out of the round.

    Raises:
        RoundError: too few groups have a sum after `max_attempts` tries; with the reason of the last.
    """
    parties = federation.parties
    groups, aggregation = parties.plan.groups, parties.config.aggregation
    sums: dict[Names, tuple[UpdateCodec, Total, CohortSum]] = {}
    error = RoundError("")
    for _ in range(aggregation.max_attempts):
        for group in _in_turn(parties, state, sums):
            try:
                sums[group] = found = sum_of_cohort(federation, state, train=True, evaluate=evaluate, group=group)
                state = replace(state, exchange=found[2].exchange)
            except RoundError as failed:
                error = failed
        if 2 * len(sums) > len(groups):
            return _joined(federation, list(sums.values()), evaluate)
    raise error


def geometric_median(points: Sequence[Vector]) -> Vector:
    """Return the point (d,) whose distances to all n points (d,) add up to the least, by Weiszfeld's algorithm.

    It is a mean of them with other weights, and inner products say all distances: (d,) is looked at n^2 times.
    """
    n = len(points)
    products = np.array([[inner_product(one, other) for other in points] for one in points])

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
            inverse = 1 / np.maximum(lengths, _NEAR * np.median(lengths))
            found = inverse / inverse.sum()
    result = np.zeros_like(points[0])
    for weight, point in zip(found, points, strict=True):
        result += np.float32(weight) * point
    return result


def _in_turn(parties: Parties, state: ServerState, done: Mapping[Names, object]) -> list[Names]:
    """Return the groups that are to be asked, once enough of them are there.

    That of an exchange which a crash has cut short comes first, so that it goes on; those that may lie are left out.
    """
    groups = parties.plan.groups
    cut_short = frozenset(parties.journal.current(state.exchange).cohort)
    while True:
        there = parties.nodes.connected().keys() - parties.suspects.left_out()
        able = [group for group in groups if len(there & set(group)) >= parties.min_cohort]
        if 2 * len({*able, *done}) > len(groups):
            return sorted((group for group in able if group not in done), key=lambda group: cut_short.isdisjoint(group))
        parties.observer.missing(sorted({name for group in groups for name in group} - there))
        parties.nodes.pause()


def _joined(federation: Federation, sums: Sequence[tuple[UpdateCodec, Total, CohortSum]], evaluate: bool) -> RoundSum:
    """Return the sum of all groups, with the geometric median in the place of its mean, and medians of losses."""
    each = [decoded(federation, *one, evaluate) for one in sums]
    codec, total, cohort = sums[-1][0], reduce(_added, (one.total for one in each)), _together([c for _, _, c in sums])
    whole = decoded(federation, codec, total, cohort, evaluate)
    return replace(
        whole,
        mean=replace(whole.mean, delta=geometric_median([one.mean.delta for one in each])),
        trained=_median([one.trained for one in each]),
        evaluated=_median([one.evaluated for one in each]),
    )


def _added(one: Total, other: Total) -> Total:
    metrics = {name: value + other.metrics[name] for name, value in one.metrics.items()}
    return Total(one.delta + other.delta, one.count + other.count, one.weight + other.weight, metrics, one.owners)


def _together(sums: Sequence[CohortSum]) -> CohortSum:
    return replace(
        sums[-1],
        survivors=tuple(sorted(name for one in sums for name in one.survivors)),
        refused={name: why for one in sums for name, why in one.refused.items()},
        bytes_up=sum(one.bytes_up for one in sums),
        bytes_down=sum(one.bytes_down for one in sums),
        silent=frozenset().union(*(one.silent for one in sums)),
    )


def _median(losses: Sequence[float | None]) -> float | None:
    found = [loss for loss in losses if loss is not None]
    return median(found) if found else None
