"""When, how and where a run was computed: sittings.json in its folder, one entry for each command that worked on it.

An entry is written once the command has begun to, and again at its end; one without an outcome was killed, or goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AwareDatetime, Field

from agfl_models.bounded import load_json
from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.files.durable_files import not_written, write_atomically
from agfl_models.machine import kind, process_age
from agfl_models.validation import Config, validate
from agfl_models.version import VERSION

SITTINGS_FILE = "sittings.json"
Outcome: TypeAlias = Literal["finished", "interrupted", "failed"]


class Sitting(Config):
    """One command that worked on the run.

    seconds, outcome: None as long as it goes on, and for ever where it was killed. machine: the kind of it, since
    another one may compute other bits.
    """

    started: AwareDatetime
    seconds: Annotated[float, Field(ge=0)] | None
    outcome: Outcome | None
    version: str
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    machine: dict[str, str]

    @property
    def ended(self) -> datetime | None:
        """When it ended, where that is known."""
        return None if self.seconds is None else self.started + timedelta(seconds=self.seconds)


class _Sittings(Config):
    sittings: tuple[Sitting, ...]


class SittingLog:
    """Keeps the entry of this command, from `begin` to the end of the block; what never began leaves nothing.

    with SittingLog() as sitting:
        run_federation(..., sitting=sitting)
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        """command: as a person types it; that of this process if omitted."""
        self._command = tuple(command or (Path(sys.argv[0]).name, *sys.argv[1:]))
        age = process_age() if command is None else 0.0  # what it took until here is part of the command
        self._clock = time.monotonic() - age
        self._started = (datetime.now().astimezone() - timedelta(seconds=age)).replace(microsecond=0)
        self._folder: Path | None = None  # once it has begun
        self._earlier: tuple[Sitting, ...] = ()

    def begin(self, folder: Path, *, resume: bool) -> None:
        """Write that it has begun. What stands there of a run that never got anywhere goes, unless this is its resume.

        Raises:
            CheckpointError: the file is damaged or cannot be written.
        """
        self._earlier = read_sittings(folder) if resume else ()
        self._write(folder, None)
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is None:
            return
        outcome: Outcome = "finished"
        if kind is not None:
            outcome = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        try:
            self._write(self._folder, outcome)
        except CheckpointError:
            if kind is None:
                raise  # else what ended the run is the better message

    def _write(self, folder: Path, outcome: Outcome | None) -> None:
        entry = Sitting(
            started=self._started,
            seconds=None if outcome is None else round(time.monotonic() - self._clock, 1),
            outcome=outcome,
            version=VERSION,
            command=self._command,
            machine=kind(),
        )
        content = [one.model_dump(mode="json") for one in (*self._earlier, entry)]
        path = folder / SITTINGS_FILE
        try:
            write_atomically(path, (json.dumps({"sittings": content}, indent=1) + "\n").encode())
        except OSError as error:
            raise not_written(path, error) from None


def read_sittings(folder: Path) -> tuple[Sitting, ...]:
    """Return the sittings of the run in a folder, the first one first; none where none was kept.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / SITTINGS_FILE
    try:
        return validate(_Sittings, load_json(path.read_text("utf-8")), str(path)).sittings
    except FileNotFoundError:
        return ()
    except ConfigError as error:
        raise CheckpointError.of(error, f"{error.sentence}; it is damaged, so move it away") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "AGFL-CHECKPOINT-020", f"{path}: must hold JSON, cannot be read: {error}; move it away"
        ) from None
