"""MLflow: a local database, `mlflow ui --backend-store-uri sqlite:///RUN/tracking/mlflow.db`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from agfl_protocol.config.run_config import RunConfig
from agfl_server.tracking.tracker import Tracker

_EXPERIMENT = "agfl"
_MAX_PARAMETER = 6000  # characters that MLflow takes


class MLflowTracker(Tracker):
    """Logs to where MLFLOW_TRACKING_URI says, and without it to a database in the run's folder."""

    name: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow"

    def begin(self, config: RunConfig, place: Path, title: str, run: str | None) -> str:
        """Create a run of the experiment `agfl`, with the configuration as parameters; or go on with one."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # of how it is used, which leaves the machine
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # each of the tables that it creates is a line
        database = None if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{place.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(database)
        if run is not None:
            self._client.update_run(run, status="RUNNING")
            self._id = run
            return run
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        where = None if database is None else (place / "mlflow").resolve().as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT, where)
        self._id = str(self._client.create_run(experiment, run_name=title).info.run_id)
        for key, value in _flat(config.model_dump(mode="json")):
            self._client.log_param(self._id, key, value[:_MAX_PARAMETER])
        return self._id

    def log(self, round_number: int, values: Mapping[str, float]) -> None:
        """Log the values of one round together."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(key, value, now, round_number) for key, value in values.items()])

    def finished(self, model: Path) -> None:
        """Log where the model is, and end the run."""
        self._client.set_tag(self._id, "model", str(model))
        self._client.set_terminated(self._id)

    def close(self) -> None:
        """Nothing is held."""


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key as it stands in `--set`, with its value."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
