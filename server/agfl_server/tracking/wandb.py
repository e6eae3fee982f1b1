"""Weights & Biases, offline: `wandb sync RUN/tracking/wandb/offline-run-*` sends it, if and when you want."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from agfl_protocol.config.run_config import RunConfig
from agfl_server.tracking.tracker import Tracker


class WandbTracker(Tracker):
    """Writes to the run's folder alone; a run that goes on writes another folder under the same id."""

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    def begin(self, config: RunConfig, place: Path, title: str, run: str | None) -> str:
        """Begin a run of the project `agfl`, with the configuration."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to their server, offline or not
        import wandb

        chosen = run or secrets.token_hex(4)
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        self._wandb: Any = wandb.init(
            project="agfl",
            name=title,
            id=chosen,
            dir=str(place),
            config=config.model_dump(mode="json"),
            mode="offline",
            resume="allow",
            reinit="create_new",  # beside a run of the caller's own
            settings=quiet,
        )
        return chosen

    def log(self, round_number: int, values: Mapping[str, float]) -> None:
        """Log the values of one round."""
        self._wandb.log(dict(values), step=round_number)

    def finished(self, model: Path) -> None:
        """Log where the model is."""
        self._wandb.summary["model"] = str(model)

    def close(self) -> None:
        """Write what is not written yet."""
        self._wandb.finish()
