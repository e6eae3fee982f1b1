"""Normalized averaging: who takes more local steps does not pull the mean toward its own optimum."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_protocol.update import Total, Update

STEPS = "normalization/steps"


@dataclass(frozen=True)
class NormalizedAveraging:
    """Average what each client moves in a step; go as many steps as they took in the mean.

    With p_i = w_i / sum(w): mean = tau_eff * sum(p_i * delta_i / tau_i), tau_eff = sum(p_i * tau_i), where tau_i is
    `Update.steps`. Comes after weighting. Source: FedNova, Wang et al. 2020, arXiv:2007.07481, equations 6 and 7.
    """

    def encode(self, update: Update) -> Update:
        """Lower the gain; add the metric `normalization/steps`, which is w_i * tau_i."""
        metrics = {**update.metrics, STEPS: update.weight * update.steps}
        return replace(update, gain=update.gain / update.steps, metrics=metrics)

    def decode(self, total: Total) -> Total:
        """Scale the sum by tau_eff."""
        steps = total.metrics[STEPS] / total.weight
        return replace(total, delta=total.delta * total.delta.dtype.type(steps))
