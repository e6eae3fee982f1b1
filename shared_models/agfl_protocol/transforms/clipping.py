"""Clipping: no client moves the model by more than a public L2 bound; where the run leaves it open, it is learned.

It is learned on a grid, powers of the square root of 2, as in Andrew et al. 2021, arXiv:1905.03871: from how many
clients exceed the bound, and how many the next lower one, to the least bound that at most half of them exceed. One step
a round at most, since a sum does not tell who said what: a liar decides the vote, but not how far it goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_protocol.run_config import RunConfig
from agfl_protocol.update import Total, Update

CLIPPED, ABOVE_NEXT = "clip/clipped", "clip/above_next"
FRACTION = "clip/fraction"
MAX_STEP = 80  # of the grid, [2^-20, 2^20]
START = 46  # 8: text models' first updates have norms of 0.5 to 8
PINNED_L2 = 100.0


def varies(config: RunConfig) -> bool:
    """Whether the bound moves from round to round: it is left open, and sums are of text drawn afresh.

    Sums over all of an owner's text differ exactly where the bound does, and then who is clipped is told (SECURITY.md).
    """
    return config.aggregation.clip_l2 == "auto" and config.training.local_steps is not None


def bound(config: RunConfig, step: int) -> float:
    """Return the bound of a round of which the broadcast says the step of the grid; 0 where it stays."""
    if varies(config):
        return float(2.0 ** ((step - MAX_STEP // 2) / 2))
    stated = config.aggregation.clip_l2
    return PINNED_L2 if stated == "auto" else stated


def next_step(step: int, total: Total, num_honest: int) -> int:
    """Return the step of the next round; num_honest: the clients in the sum that had something to clip."""
    if 2 * round(total.metrics[CLIPPED]) > num_honest:
        return min(step + 1, MAX_STEP)
    if 2 * round(total.metrics[ABOVE_NEXT]) <= num_honest:
        return max(step - 1, 1)
    return step


@dataclass(frozen=True)
class Clipping:
    """Scale a delta to L2 norm <= `clip_l2`; the sum carries how many exceeded it, and how many the next lower bound.

    Source: the clipping of DP-FedAvg, McMahan et al. 2018, arXiv:1710.06963, Algorithm 1 (flat clipping).
    """

    clip_l2: float

    def encode(self, update: Update) -> Update:
        """Lower the gain; add the metrics `clip/clipped` and `clip/above_next` (0 or 1)."""
        is_clipped, is_above = update.norm > self.clip_l2, update.norm > self.clip_l2 / 2**0.5
        metrics = {**update.metrics, CLIPPED: float(is_clipped), ABOVE_NEXT: float(is_above)}
        if not is_clipped:
            return replace(update, metrics=metrics)
        # A little below the bound, so that rounding cannot step over it.
        return replace(update, gain=update.gain * (self.clip_l2 / update.norm) * (1 - 1e-5), metrics=metrics)

    def decode(self, total: Total) -> Total:
        """Report the share of clients that were clipped as `clip/fraction`."""
        metrics = dict(total.metrics)
        metrics[FRACTION] = metrics.pop(CLIPPED) / total.count
        return replace(total, metrics=metrics)
