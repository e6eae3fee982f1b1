"""What a run measured, round by round, as a notebook shows it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from agfl_models.errors import ConfigError, DataError
from agfl_models.files.durable_files import read_json_lines
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.files.store_files import CONFIG_FILE, METRICS_FILE, MODEL_FOLDER
from agfl_protocol.config.run_config import RunConfig, load_finished
from agfl_server.report.charts import line_chart, number_text
from agfl_server.report.curves import loss_chart, quality_chart
from agfl_server.report.style import NOTEBOOK_CSS

if TYPE_CHECKING:
    import pandas

    from agfl.model import Model

Row = dict[str, int | float | None]


class History:
    """The rows of a run's `metrics.jsonl`, one for each round, and where the run left its model.

    Attributes:
        folder: of the run.
        config: the run's configuration, with every default filled in.
        rows: one a round, from round 0, the untrained model. A metric that was not measured is None.
    """

    def __init__(self, folder: Path, config: RunConfig, rows: list[Row]) -> None:
        self.folder, self.config, self.rows = folder, config, rows

    @classmethod
    def read(cls, folder: Path | str) -> History:
        """Return the history of the run in a folder, finished or under way.

        Raises:
            AgflError: the folder holds no run, or a file of the run is damaged.
        """
        folder = Path(folder)
        if not (folder / METRICS_FILE).exists():
            raise DataError(
                "AGFL-DATA-073", f"{folder}: must hold a run that has finished a round, holds none{folder_hint(folder)}"
            )
        return cls(folder, load_finished(folder / CONFIG_FILE), read_json_lines(folder / METRICS_FILE))

    @property
    def best(self) -> Row:
        """The row with the best value of the task's main metric; of equal ones the first.

        Raises:
            DataError: no round was evaluated.
        """
        metric = self.config.task.main_metric
        sign = 1 if metric.higher_is_better else -1
        measured = [(sign * value, row) for row in self.rows if (value := row.get(metric.name)) is not None]
        if not measured:
            raise DataError(
                "AGFL-DATA-074", f"{self.folder}: {metric.name}: must be measured in a round at least, is in none"
            )
        return max(measured, key=lambda pair: pair[0])[1]

    @property
    def model_path(self) -> Path:
        """The folder of the trained model."""
        return self.folder / MODEL_FOLDER

    @property
    def model(self) -> Model:
        """The trained model, opened anew each time; raises as `agfl.load`."""
        from agfl.model import load

        return load(self.folder)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a table that is indexed by round.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ConfigError(
                "AGFL-CONFIG-197", "to_pandas: needs pandas, which is not installed: pip install pandas"
            ) from None
        return pandas.DataFrame(self.rows).set_index("round")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"History({str(self.folder)!r}: {', '.join(f'{name} {value}' for name, value in self._headlines())})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the last figures, and the curves of loss and quality."""
        metric = self.config.task.main_metric
        figures = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in self._headlines())
        charts = "".join(
            f"<figure>{line_chart(chart)}</figure>"
            for chart in (loss_chart(self.rows), quality_chart(self.rows, metric))
        )
        name = escape(str(self.folder))
        return (
            f'<div class="agfl-history"><style>{NOTEBOOK_CSS}</style><p>{name}</p>'
            f'<dl>{figures}</dl><div class="charts">{charts}</div></div>'
        )

    def _headlines(self) -> list[tuple[str, str]]:
        metric = self.config.task.main_metric
        last = [value for row in self.rows if (value := row.get(metric.name)) is not None][-1:]
        losses = [value for row in self.rows if (value := row.get("train/loss")) is not None][-1:]
        shown = [("rounds", f"{self.rows[-1]['round']} of {self.config.num_rounds}")] if self.rows else []
        shown += [(metric.title, number_text(float(value))) for value in last]
        return shown + [("training loss", number_text(float(value))) for value in losses]
