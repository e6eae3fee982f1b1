"""Weighting by loss: the owners whom the model serves worst count most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.header import RESOLUTION, as_it_travels
from agfl_protocol.update import Total, Update

CURVATURE = "fairness/curvature"
MIN_WEIGHT = 1 / 16  # of the largest: else a sum could be made the update of the one owner with the largest loss


@dataclass(frozen=True)
class FairWeighting:
    """q-FedAvg: Li et al. 2020, arXiv:1905.10497, Algorithm 2, in place of `Weighting`.

    With F_i = loss / max_loss, at most 1, the server steps along sum(F_i^q delta_i) / sum(F_i^q + q L F_i^(q-1)
    |delta_i|^2 / max_loss), which is the paper's with numerator and denominator divided by L max_loss^q. L is
    `lipschitz`, in the paper 1 / lr. `max_loss` is public and caps what one owner can weigh; a smaller loss counts as
    no less than that of weight `MIN_WEIGHT`.
    """

    q: float
    lipschitz: float
    max_loss: float

    @staticmethod
    def of(config: RunConfig) -> FairWeighting:
        """Return the weighting that the run configuration names."""
        aggregation = config.aggregation
        return FairWeighting(aggregation.fairness_q, 1 / config.training.optimizer.lr, aggregation.max_loss)

    def encode(self, update: Update) -> Update:
        """Scale the gain by F_i^q; add the metric `fairness/curvature`, the other summand of the denominator."""
        least = max(MIN_WEIGHT ** (1 / self.q), 1 / RESOLUTION) if self.q > 0 else 1.0
        share = min(max(update.loss / self.max_loss, least), 1.0)
        weight = as_it_travels(share**self.q if update.weight > 0 else 0.0)
        curvature = self.q * self.lipschitz * weight * update.norm**2 / (share * self.max_loss)
        metrics = {**update.metrics, CURVATURE: curvature}
        return replace(update, gain=update.gain * weight, weight=weight, metrics=metrics)

    def decode(self, total: Total) -> Total:
        """Turn the sum into the step."""
        denominator = total.weight + total.metrics[CURVATURE]
        return replace(total, delta=total.delta / total.delta.dtype.type(denominator))
