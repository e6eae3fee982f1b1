"""What one honest owner's metrics are at most, as far as that follows from the run: a sum above it has a lie in it."""

from __future__ import annotations

from collections.abc import Mapping

from agfl_models.errors import ImplausibleSum
from agfl_models.tasks import distribution
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.optimizer_config import PortfolioConfig
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods import candidates, clipping, coverage, drift
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.transforms import quantization


def of_metrics(config: RunConfig, task: AnyTask, max_cohort: int) -> dict[str, float]:
    """Return {metric: its most}; of others, such as a loss, nothing is known."""
    ones = (DIVERGED, clipping.CLIPPED, *clipping.ABOVE, drift.LOST, *distribution.BINS)
    most = dict.fromkeys((*ones, *coverage.names(config.max_rings)), 1.0)
    most |= quantization.most_of_metrics(max_cohort)
    training, each = config.training, config.task.max_predictions
    if training.local_steps is not None:
        most[task.train_sums[1]] = float(training.local_steps * training.batch_size * each)
    optimizer = config.aggregation.server_optimizer
    if isinstance(optimizer, PortfolioConfig):
        most[candidates.PREDICTIONS] = float(optimizer.max_examples * each)
    return most


def check_sums(sums: Mapping[str, float], count: int) -> None:
    """Check sums of metrics against each other.

    Raises:
        ImplausibleSum: each client is of one tier, and has a bounded loss a prediction of each candidate.
    """
    tiers = [value for name, value in sums.items() if coverage.is_tier(name)]
    if tiers and sum(tiers) != count:
        raise ImplausibleSum(f"rings: tiers must add up to {count} clients, got {sum(tiers):g}")
    if candidates.PREDICTIONS in sums:
        most = candidates.MAX_LOSS * sums[candidates.PREDICTIONS]
        # Each client rounds once.
        worst = max(value for name, value in sums.items() if candidates.is_loss(name)) - count
        if worst > most:
            raise ImplausibleSum(f"candidates: losses must be at most {most:g}, got {worst:g}")
