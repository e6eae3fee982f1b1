"""The losses of models that are broadcast beside the one that is trained, as sums over owners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PREDICTIONS, _LOSS = "candidates/predictions", "candidates/loss_"
MAX_LOSS = 1e3  # a prediction; a model that is worse, or says NaN, counts as this


def names(num_models: int) -> tuple[str, ...]:
    """Return the names of the sums that a round with `num_models` models has; none where there is one alone."""
    return (*(_name(i) for i in range(num_models)), PREDICTIONS) if num_models > 1 else ()


def sums(losses: Sequence[float], num_predictions: int) -> dict[str, float]:
    """Return what one owner adds: the summed loss of each model over the same predictions."""
    known = {_name(i): bounded(loss, num_predictions) for i, loss in enumerate(losses)}
    return known | {PREDICTIONS: float(num_predictions)}


def bounded(loss: float, num_predictions: int) -> float:
    """Return a summed loss within what the sum has room for."""
    most = MAX_LOSS * num_predictions
    return min(loss, most) if math.isfinite(loss) else most


def candidate_losses(metrics: Mapping[str, float], num_models: int) -> list[float]:
    """Return the mean loss of each model a prediction; empty where none was evaluated."""
    predictions = metrics.get(PREDICTIONS, 0.0)
    return [metrics[_name(i)] / predictions for i in range(num_models)] if predictions else []


def is_loss(name: str) -> bool:
    """Whether a sum is the loss of one model."""
    return name.startswith(_LOSS)


def _name(number: int) -> str:
    return f"{_LOSS}{number}"
