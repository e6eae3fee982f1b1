"""How a model is evaluated on a dataset: sums, so that those of several datasets can be added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from agfl_models.examples import Row
from agfl_models.tasks.task import AnyTask, BatchT, Dataset

BATCH_SIZE = 32


def evaluation_sums(
    model: nn.Module,
    task: AnyTask,
    dataset: Dataset[Any],
    batch_size: int,
    max_examples: int,
    device: str,
    rng: np.random.Generator | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return `task.eval_sums` over the first validation examples, or with `rng` over drawn ones, in float32.

    before_batch: called before each batch; what it raises ends the evaluation.
    """
    sums = dict.fromkeys(task.eval_sums, 0.0)
    model.eval()
    with torch.no_grad():
        for batch in validation_batches(dataset, batch_size, max_examples, rng):
            before_batch()
            for name, value in task.evaluate(model, batch.to(device)).items():
                sums[name] += value
    return sums


def validation_batches(
    dataset: Dataset[BatchT], batch_size: int, max_examples: int, rng: np.random.Generator | None
) -> Iterator[BatchT]:
    """Return the first `max_examples` validation examples; with `rng` exactly as many, drawn with replacement."""
    if rng is None:
        return dataset.validation(batch_size, max_examples)
    return dataset.sample_validation(batch_size, max_examples, rng)


def evaluate_rows(model: nn.Module, task: AnyTask, rows: Sequence[Row]) -> dict[str, float]:
    """Return the task's metrics over all of `rows`."""
    sums = evaluation_sums(model, task, task.hold_out(rows), BATCH_SIZE, sys.maxsize, "cpu")
    return task.eval_metrics(sums)
