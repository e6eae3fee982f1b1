"""Puts a run's grid into virtual time where its owners have devices."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models.bounded import shown
from agfl_models.errors import ConfigError
from agfl_models.files.durable_files import not_written, write_atomically
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_sim.virtual_time.answers import Answer, append_answer, cut_torn_line
from agfl_sim.virtual_time.devices import Device
from agfl_sim.virtual_time.virtual_grid import VirtualGrid

FOLDER = "virtual_time"  # in the run's folder
ANSWERS, _NOW = "answers.jsonl", "now"  # in there; now: seconds since the run began, for when it goes on
_TRACE = "trace.sha256"


@contextmanager
def timed(
    grid: Grid, config: RunConfig, devices: Mapping[int, Device], folder: Path, *, resume: bool
) -> Iterator[Grid]:
    """Yield the grid, or where its nodes have devices, one in virtual time around it.

    Raises:
        ConfigError: the moment at which the run stopped cannot be read, or the trace is another one.
        CheckpointError: the folder cannot be written.
    """
    if not devices:
        yield grid
        return
    place, moment = folder / FOLDER, 0.0
    now, answers = place / _NOW, place / ANSWERS
    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
        if resume:
            moment = _stopped_at(now)
            cut_torn_line(answers)
        else:
            answers.unlink(missing_ok=True)
    _check_trace(config, place / _TRACE, resume=resume)

    def steps(message: Message) -> int:
        return config.training.local_steps or 0 if message.metadata.message_type == wire.TRAIN else 0

    def keep(moment: float) -> None:
        with _writing(place):
            write_atomically(now, f"{moment!r}\n".encode())

    def note(answer: Answer) -> None:
        with _writing(place):
            append_answer(answers, answer)

    virtual = VirtualGrid(grid, devices, steps, moment, keep, note)
    yield virtual
    virtual.finish()


def _stopped_at(path: Path) -> float:
    if not path.exists():
        return 0.0
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ConfigError("AGFL-CONFIG-269", f"{path}: must hold seconds, as a run left it, got {shown(text)}")
    return found


def _check_trace(config: RunConfig, path: Path, *, resume: bool) -> None:
    """Keep what the trace is, or refuse another one: its owners would be others from here on."""
    assert config.data.devices is not None
    trace = config.data.devices.trace
    if trace is None:
        return
    with _writing(path):
        digest = hashlib.sha256(trace.read_bytes()).hexdigest()
        if not resume or not path.exists():
            write_atomically(path, digest.encode())
        elif path.read_text() != digest:
            rule = "must be the trace with which the run began"
            raise ConfigError("AGFL-CONFIG-296", f"data.devices.trace: {trace}: {rule}, got another")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from None
