"""How a model is evaluated on a dataset: sums, so that those of several datasets can be added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from agfl_models.examples import Row
from agfl_models.sequence_model import SequenceModel
from agfl_models.tasks.task import AnyTask, Dataset

BATCH_SIZE = 32


def evaluation_sums(
    model: SequenceModel,
    task: AnyTask,
    dataset: Dataset[Any],
    batch_size: int,
    max_examples: int,
    device: str,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return `task.eval_sums` over the validation examples of a dataset, in float32.

    before_batch: called before each batch; what it raises ends the evaluation.
    """
    sums = dict.fromkeys(task.eval_sums, 0.0)
    model.eval()
    with torch.no_grad():
        for batch in dataset.validation(batch_size, max_examples):
            before_batch()
            for name, value in task.evaluate(model, batch.to(device)).items():
                sums[name] += value
    return sums


def evaluate_rows(model: SequenceModel, task: AnyTask, rows: Sequence[Row]) -> dict[str, float]:
    """Return the task's metrics over all of `rows`."""
    sums = evaluation_sums(model, task, task.hold_out(rows), BATCH_SIZE, sys.maxsize, "cpu")
    return task.eval_metrics(sums)
