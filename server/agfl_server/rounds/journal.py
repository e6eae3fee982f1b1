"""The exchange under way, on disk before anybody is asked: a server that was killed goes on in the trip where it was.

OUTPUT/exchange/ holds `exchange.json`, which names the run and its last exchange, and what each trip of that brought:

    {"version": 1, "run_id": "5f0c...", "exchange": 12, "round": 9, "is_open": true, "cohort": [...],
     "refused": [], "request": "..."}

An exchange number is used up once it is written here. One that is open is asked for again under the same number, with
the same request, and clients send again what they sent; one that was spent never is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.tensor_file import parts_of_file

FOLDER, _STATE_FILE, _VERSION = "exchange", "exchange.json", 1
_KEPT = "kept"


class Records(Protocol):
    """What the trips of one exchange brought, by trip and name."""

    def read(self, trip: str) -> dict[str, bytes] | None:
        """Return what a trip brought, None where it is still to come."""
        ...

    def write(self, trip: str, content: Mapping[str, bytes | memoryview]) -> None:
        """Keep what a trip brought, durably when this returns."""
        ...


class NoRecords:
    """For a sum that a crash may lose."""

    def read(self, trip: str) -> None:
        """Nothing is kept."""

    def write(self, trip: str, content: Mapping[str, bytes | memoryview]) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class Entry:
    """The last exchange of a run.

    cohort: who was asked; refused: who failed in this round so far; request: SHA-256 of what was asked, empty where
    that may still change, since nothing has left a client.
    """

    run_id: str
    exchange: int = 0
    round: int = 0
    is_open: bool = False
    cohort: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    request: str = ""


class Journal:
    """The journal of one run; a search, its candidates and its tokenizer share one.

    Raises (every method): CheckpointError: a file is damaged, or the disk is full or not writable.
    """

    def __init__(self, output: Path) -> None:
        self._folder = output / FOLDER

    @property
    def run_id(self) -> str:
        """The run's."""
        entry = self._read()
        if entry is None:
            raise CheckpointError("AGFL-CHECKPOINT-026", f"exchange: {self._state_path}: must name the run, is missing")
        return entry.run_id

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to go on with."""
        return self._state_path.exists()

    def begin(self, run_id: str | None = None) -> None:
        """Begin a run of this name, else of a random one."""
        self._write(Entry(run_id or secrets.token_hex(16)))

    def current(self, after: int) -> Entry:
        """Return the open exchange, or a new one that comes after `after` and all that were used up."""
        last = self._read()
        assert last is not None
        if last.is_open and last.exchange > after:
            return last
        return Entry(last.run_id, max(last.exchange, after) + 1)

    def open(self, entry: Entry) -> Records:
        """Use up the number of `entry` before anybody is asked; return what its trips brought so far."""
        last = self._read()
        if last != entry:
            if last is not None and last.exchange != entry.exchange:
                self.close(last.round, last.refused)  # before it loses what it brought, or it would be asked for again
            self._clear()
            self._write(entry)
        return _Files(self._folder)

    def kept(self) -> Records:
        """Return sums that a round goes on with after a crash, by name; exchanges that follow leave them."""
        return _Files(self._folder / _KEPT)

    def drop_kept(self) -> None:
        """Delete the kept sums, of a round that a checkpoint has behind it."""
        for path in (self._folder / _KEPT).glob("*.safetensors"):
            path.unlink(missing_ok=True)

    def close(self, round_number: int, refused: Collection[str] = ()) -> None:
        """Note that the last exchange is never asked for again; refused: who failed in this round, if it goes on."""
        last = self._read()
        assert last is not None
        self._write(Entry(last.run_id, last.exchange, round_number, refused=tuple(sorted(refused))))
        self._clear()

    def refused(self, round_number: int) -> frozenset[str]:
        """Return who failed in earlier exchanges of this round."""
        last = self._read()
        return frozenset(last.refused) if last is not None and last.round == round_number else frozenset()

    def take_back(self, after: int) -> int:
        """Forget an exchange under way, for clients that forget it too; return the last number that stays used up.

        after: the last exchange that a model has behind it, which stays.
        """
        last = self._read()
        assert last is not None
        if last.is_open and last.exchange > after:
            last = Entry(last.run_id, last.exchange - 1, last.round, refused=last.refused)
            self._write(last)
            self._clear()
        return last.exchange

    @property
    def _state_path(self) -> Path:
        return self._folder / _STATE_FILE

    def _read(self) -> Entry | None:
        try:
            content = json.loads(self._state_path.read_text("utf-8"))
            if content.pop("version") != _VERSION:
                raise ValueError("version")
            lists = {key: tuple(content[key]) for key in ("cohort", "refused")}
            return Entry(**{**content, **lists})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                "AGFL-CHECKPOINT-027", f"exchange: {self._state_path}: is damaged: {error!r}"
            ) from None

    def _write(self, entry: Entry) -> None:
        _write(self._state_path, json.dumps({"version": _VERSION, **asdict(entry)}).encode())

    def _clear(self) -> None:
        for path in self._folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Files:
    """One file a trip, `TRIP.safetensors`, with mode 0600: some of them open the sum."""

    folder: Path

    def read(self, trip: str) -> dict[str, bytes] | None:
        path = self._path(trip)
        try:
            return {name: array.tobytes() for name, array in load(path.read_bytes()).items()}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            raise CheckpointError("AGFL-CHECKPOINT-028", f"exchange: {path}: is damaged: {error}") from None

    def write(self, trip: str, content: Mapping[str, bytes | memoryview]) -> None:
        _write(self._path(trip), parts_of_file({name: np.frombuffer(part, np.uint8) for name, part in content.items()}))

    def _path(self, trip: str) -> Path:
        return self.folder / f"{trip}.safetensors"


def _write(path: Path, content: bytes | Sequence[bytes | memoryview]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, mode=0o600)
    except OSError as error:
        raise CheckpointError("AGFL-CHECKPOINT-029", f"exchange: {path}: cannot be written: {error.strerror}") from None
