"""How a metric is distributed over owners: each adds one to a bin of a histogram, so the sum names nobody.

Every owner puts a 1 into the bin of its own main metric and a 0 into the others; the bins are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from agfl_models.tasks.task import MainMetric

NUM_BINS = 20
MIN_OWNERS = 10  # a tenth of fewer would be no owner at all
BINS = tuple(f"eval/owners_{i:02}" for i in range(NUM_BINS))
WORST_DECILE = "eval/worst_decile"


def one_hot(metric: MainMetric, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return one owner's contribution to `BINS`: all 0 where it has no value, and the outermost bins are open."""
    counts = dict.fromkeys(BINS, 0.0)
    value = metrics.get(metric.name, math.nan)
    if math.isfinite(value):
        inside = min(max(value, metric.low), metric.high)
        share = (inside - metric.low) / (metric.high - metric.low)
        counts[BINS[min(math.floor(share * NUM_BINS), NUM_BINS - 1)]] = 1.0
    return counts


def worst_decile(metric: MainMetric, sums: Mapping[str, float]) -> dict[str, float]:
    """Return about the mean of `metric` over the worst tenth of owners, rounded up; nothing of fewer than `MIN_OWNERS`.

    Owners of one bin are taken as spread evenly over it, each at the center of its part. So the result is never better
    than the exact mean by more than half a bin, nor worse by a whole one, and who gets worse never makes it better.
    """
    counts = [round(sums[name]) for name in BINS]
    if sum(counts) < MIN_OWNERS:
        return {}
    width = (metric.high - metric.low) / NUM_BINS
    owners = [
        metric.low + (i + (place + 0.5) / count) * width for i, count in enumerate(counts) for place in range(count)
    ]
    owners.sort(reverse=not metric.higher_is_better)
    worst = owners[: math.ceil(len(owners) / 10)]
    return {WORST_DECILE: sum(worst) / len(worst)}
