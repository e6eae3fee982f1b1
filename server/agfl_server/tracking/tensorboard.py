"""TensorBoard: `tensorboard --logdir RUN/tracking/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from agfl_protocol.config.run_config import RunConfig
from agfl_server.tracking.tracker import Tracker


class TensorBoardTracker(Tracker):
    """Writes event files; those of a run that goes on lie beside the first."""

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"

    def begin(self, config: RunConfig, place: Path, title: str, run: str | None) -> str:
        """Open a new event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(place / self.name))
        self._text("configuration", config.to_yaml())
        return title if run is None else run

    def log(self, round_number: int, values: Mapping[str, float]) -> None:
        """Log the values of one round, so that they are there at once."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, global_step=round_number)
        self._writer.flush()

    def finished(self, model: Path) -> None:
        """Log where the model is."""
        self._text("model", str(model))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _text(self, name: str, text: str) -> None:
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown, as it stands
        self._writer.add_text(name, indented)
