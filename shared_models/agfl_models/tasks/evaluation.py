"""How a model is evaluated on a dataset: sums, so that those of several datasets can be added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from agfl_models.examples import Row
from agfl_models.tasks.task import AnyTask, Dataset

BATCH_SIZE = 32


@dataclass(frozen=True)
class HeldOut:
    """Validation examples of a dataset, on which a model of a task is evaluated.

    They are its first `max_examples`, or with `rng` exactly as many, drawn with replacement: the same for several
    models if each is given a generator of one seed. device: where the model is. before_batch: called before each batch;
    what it raises ends the evaluation.
    """

    task: AnyTask
    dataset: Dataset[Any]
    batch_size: int = BATCH_SIZE
    max_examples: int = sys.maxsize
    device: str = "cpu"
    rng: np.random.Generator | None = None
    before_batch: Callable[[], None] = lambda: None

    def batches(self) -> Iterator[Any]:
        """Yield them in batches, on the device; those that are drawn are others each time."""
        if self.rng is None:
            batches = self.dataset.validation(self.batch_size, self.max_examples)
        else:
            batches = self.dataset.sample_validation(self.batch_size, self.max_examples, self.rng)
        for batch in batches:
            self.before_batch()
            yield batch.to(self.device)


def evaluation_sums(model: nn.Module, held_out: HeldOut) -> dict[str, float]:
    """Return `task.eval_sums` over the examples, in float32."""
    sums = dict.fromkeys(held_out.task.eval_sums, 0.0)
    model.eval()
    with torch.no_grad():
        for batch in held_out.batches():
            for name, value in held_out.task.evaluate(model, batch).items():
                sums[name] += value
    return sums


def evaluate_rows(model: nn.Module, task: AnyTask, rows: Sequence[Row]) -> dict[str, float]:
    """Return the task's metrics over all of `rows`."""
    return task.eval_metrics(evaluation_sums(model, HeldOut(task, task.hold_out(rows))))
