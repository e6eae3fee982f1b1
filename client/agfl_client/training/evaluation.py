"""What one owner says of a model: its loss alone, or all sums of the task and the owner's place among owners."""

from __future__ import annotations

import torch
from torch import nn

from agfl_models.tasks import distribution
from agfl_models.tasks.evaluation import HeldOut, evaluation_sums


def validation_loss(model: nn.Module, held_out: HeldOut) -> tuple[float, int]:
    """Return (loss summed over the predictions of one owner's validation examples, their number), in float32.

    Raises:
        PolicyViolation: the deadline passes, where `held_out.before_batch` checks one.
    """
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in held_out.batches():
            loss, predictions = held_out.task.loss(model, batch)
            total, count = total + float(loss), count + predictions
    return total, count


def evaluate(model: nn.Module, held_out: HeldOut) -> dict[str, float]:
    """Return one owner's `task.eval_sums`, as `evaluation_sums` finds them, and its place among owners.

    Raises:
        PolicyViolation: as `validation_loss`.
    """
    sums, task = evaluation_sums(model, held_out), held_out.task
    return sums | distribution.one_hot(task.main_metric, task.eval_metrics(sums))
