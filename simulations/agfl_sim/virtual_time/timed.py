"""Puts a run's grid into virtual time where its owners have devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_sim.virtual_time.answers import Answer, append_answer
from agfl_sim.virtual_time.devices import Device
from agfl_sim.virtual_time.virtual_grid import VirtualGrid

FOLDER = "virtual_time"  # in the run's folder
ANSWERS, _NOW = "answers.jsonl", "now"  # in there; now: seconds since the run began, for when it goes on


@contextmanager
def timed(
    grid: Grid, config: RunConfig, devices: Mapping[int, Device], folder: Path, *, resume: bool
) -> Iterator[Grid]:
    """Yield the grid, or where its nodes have devices, one in virtual time around it.

    Raises:
        ConfigError: the moment at which the run stopped cannot be read.
    """
    if not devices:
        yield grid
        return
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    now, answers = place / _NOW, place / ANSWERS
    if not resume:
        answers.unlink(missing_ok=True)

    def steps(message: Message) -> int:
        return config.training.local_steps or 0 if message.metadata.message_type == wire.TRAIN else 0

    def keep(moment: float) -> None:
        now.write_text(f"{moment!r}\n", encoding="utf-8")

    def note(answer: Answer) -> None:
        append_answer(answers, answer)

    virtual = VirtualGrid(grid, devices, steps, _stopped_at(now) if resume else 0.0, keep, note)
    yield virtual
    virtual.finish()


def _stopped_at(path: Path) -> float:
    if not path.exists():
        return 0.0
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            "AGFL-CONFIG-269", f"{path}: must hold seconds, as a run left it, does not: {error}"
        ) from None
