"""The rows of metrics.jsonl: what a round's sum says, and what its evaluation adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agfl_models.tasks.task import AnyTask
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.methods.method import Method
from agfl_protocol.transforms import quantization
from agfl_protocol.update import wide_norm
from agfl_server.rounds.cohort_sums import RoundSum
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import empty_row

CENTRAL = "central/"  # what the watcher measures on data of its own


def round_row(task: AnyTask, methods: Sequence[Method], number: int, summed: RoundSum, seconds: float) -> Row:
    """Return the row of round `number`, whose evaluation is still to come."""
    mean, cohort = summed.mean, summed.cohort
    return {
        **empty_row(task, methods),
        "round": number,
        **task.train_metrics(mean.metrics),
        "train/loss": summed.trained,
        "clients": mean.count - round(mean.metrics[DIVERGED]),
        "refused": len(cohort.refused),
        "bytes_up": cohort.bytes_up,
        "bytes_down": cohort.bytes_down,
        "update/l2": wide_norm(mean.delta),
        quantization.RELATIVE_ERROR: mean.metrics[quantization.RELATIVE_ERROR],
        **summed.row,
        "seconds": round(seconds, 4),
    }


def completed(task: AnyTask, methods: Sequence[Method], row: Row, summed: RoundSum) -> Row:
    """Return a row with what the sum says of its model."""
    sums: Mapping[str, float] = summed.mean.metrics
    own = {name: value for method in methods for name, value in method.eval_row(sums).items()}
    return {**row, **task.eval_metrics(sums), "eval/loss": summed.evaluated, **own}
