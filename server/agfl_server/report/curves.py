"""The curves of a run that a person looks at first, from the rows of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agfl_models.tasks import distribution
from agfl_models.tasks.task import MainMetric
from agfl_server.report.charts import Chart, Curve, Point

Rows = Sequence[Mapping[str, float | None]]
_OWN_CHARTS = {"train", "eval", "update", "quantization"}  # families of metrics that have charts of their own, or none


def values(rows: Rows, key: str) -> list[float]:
    """Return what was recorded under a key, in the order of the rounds."""
    return [value for row in rows if (value := row.get(key)) is not None]


def curve(rows: Rows, name: str, key: str, scale: float = 1.0) -> Curve:
    """Return the curve of what was recorded under a key, times `scale`."""
    rounds = values([row for row in rows if row.get(key) is not None], "round")
    return Curve(name, [Point(int(i), value * scale) for i, value in zip(rounds, values(rows, key), strict=True)])


def loss_chart(rows: Rows) -> Chart:
    """Return the loss of training, and that on what owners hold out."""
    return Chart("Loss", "nats", [curve(rows, "training", "train/loss"), curve(rows, "evaluation", "eval/loss")])


def quality_chart(rows: Rows, main_metric: MainMetric) -> Chart:
    """Return the main metric over all owners, and over the tenth whom the model serves worst."""
    quality = [curve(rows, "all owners", main_metric.name)]
    quality += [curve(rows, "worst tenth of owners", distribution.WORST_DECILE)]
    return Chart(f"Evaluation: {main_metric.title}", "", quality)


def other_charts(rows: Rows) -> list[Chart]:
    """Return a chart of each further metric of the rows: what methods report, and what a watcher measures."""
    keys = dict.fromkeys(key for row in rows for key in row if "/" in key and key.partition("/")[0] not in _OWN_CHARTS)
    return [Chart(key, "", [curve(rows, key, key)]) for key in keys if values(rows, key)]
