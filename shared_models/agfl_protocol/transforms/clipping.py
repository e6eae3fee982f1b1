"""Clipping: no client moves the model by more than a public L2 bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_protocol.update import Total, Update

CLIPPED = "clip/clipped"
FRACTION = "clip/fraction"


@dataclass(frozen=True)
class Clipping:
    """Scale a delta to L2 norm <= `clip_l2`; the sum carries how many clients were clipped.

    Source: the clipping of DP-FedAvg, McMahan et al. 2018, arXiv:1710.06963, Algorithm 1 (flat clipping).
    """

    clip_l2: float

    def encode(self, update: Update) -> Update:
        """Lower the gain; add the metric `clip/clipped` (0 or 1)."""
        metrics = {**update.metrics, CLIPPED: float(update.norm > self.clip_l2)}
        if update.norm <= self.clip_l2:
            return replace(update, metrics=metrics)
        # A little below the bound, so that rounding cannot step over it.
        return replace(update, gain=update.gain * (self.clip_l2 / update.norm) * (1 - 1e-5), metrics=metrics)

    def decode(self, total: Total) -> Total:
        """Report the share of clients that were clipped as `clip/fraction`."""
        metrics = dict(total.metrics)
        metrics[FRACTION] = metrics.pop(CLIPPED) / total.count
        return replace(total, metrics=metrics)
