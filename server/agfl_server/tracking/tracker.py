"""What all trackers share: each row is logged once, whatever ended the run in between, and no owner's data is."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import read_json_lines, write_atomically
from agfl_models.files.store_files import METRICS_FILE
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer, Row

TRACKING_FOLDER = "tracking"


class Tracker(Observer):
    """Logs the rows of metrics.jsonl, the configuration and where the model is.

    `tracking/NAME.json` in the run's folder says which tracked run it is and which round was logged last, so that
    `--resume` goes on in the same one.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    """What must be installed."""

    def opened(self, config: RunConfig, folder: Path) -> None:
        """Begin, or go on, and log what stands in metrics.jsonl and was not logged yet."""
        place = folder / TRACKING_FOLDER
        place.mkdir(parents=True, exist_ok=True)
        self._state = place / f"{self.name}.json"
        kept = self._read()
        self._last = int(kept.get("round", -1))
        self._run = self.begin(config, place, folder.resolve().name, kept.get("run"))
        self._write()
        metrics = folder / METRICS_FILE
        self.saved(read_json_lines(metrics) if metrics.exists() else [])

    def saved(self, rows: Sequence[Row]) -> None:
        """Log the rows of rounds that were not logged yet."""
        for row in rows:
            number = int(row["round"] or 0)
            if number > self._last:
                values = {key: float(value) for key, value in row.items() if key != "round" and value is not None}
                self.log(number, values)
                self._last = number
                self._write()

    @abstractmethod
    def begin(self, config: RunConfig, place: Path, title: str, run: str | None) -> str:
        """Begin a tracked run that is called `title` in the folder `place`, or go on with `run`; return its id."""

    @abstractmethod
    def log(self, round_number: int, values: Mapping[str, float]) -> None:
        """Log the values of one round."""

    @abstractmethod
    def finished(self, model: Path) -> None:
        """Log where the model is, and that the run is done."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held, whether the run is done or was stopped."""

    def _read(self) -> dict[str, str]:
        try:
            return {key: str(value) for key, value in json.loads(self._state.read_text("utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError):
            rule = "must say which tracked run goes on; it is damaged, so remove it to begin another"
            raise CheckpointError("AGFL-CHECKPOINT-039", f"tracking: {self._state}: {rule}") from None

    def _write(self) -> None:
        try:
            write_atomically(self._state, (json.dumps({"run": self._run, "round": self._last}) + "\n").encode())
        except OSError as error:
            raise CheckpointError(
                "AGFL-CHECKPOINT-040", f"tracking: {self._state}: cannot be written: {error.strerror}"
            ) from None
