"""Who is here: a file in the run's folder that a running server keeps up to date, for `agfl-server nodes` to read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from agfl_models.files.durable_files import write_atomically

ATTENDANCE_FILE = "nodes.json"
WRITE_EVERY_S = 5.0
STALE_S = 4 * WRITE_EVERY_S  # a file that is older is of a server that runs no more


@dataclass
class Attendance:
    """What is known of each node of the run; written each few seconds, from `__enter__` to `__exit__`.

    online: the names of those that are connected now.
    """

    path: Path
    online: Callable[[], Collection[str]]
    _nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def note(self, name: str, **what: str) -> None:
        """Note something of a node: its `software`, or what it `does`."""
        with self._lock:
            self._nodes.setdefault(name, {}).update(what)

    def __enter__(self) -> Attendance:
        self._thread = threading.Thread(target=self._write_for_ever, name="attendance", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.write(is_running=False)

    def write(self, *, is_running: bool = True) -> None:
        """Write the file; one that cannot be written stops nobody. A folder that is not there is not made."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        here = set(self.online()) if is_running else set()
        for name in here:
            self.note(name, last_seen=now)
        with self._lock:
            nodes = {name: {**what, "here": name in here} for name, what in sorted(self._nodes.items())}
        content = {"written": now, "is_running": is_running, "nodes": nodes}
        if self.path.parent.is_dir():
            with suppress(OSError):
                write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def _write_for_ever(self) -> None:
        while not self._stop.wait(WRITE_EVERY_S):
            self.write()


@dataclass(frozen=True)
class Seen:
    """A row of `agfl-server nodes`. here: None where no server runs that could know."""

    name: str
    here: bool | None
    last_seen: str | None
    software: str | None
    does: str | None


def read_attendance(path: Path, names: Collection[str], now: datetime | None = None) -> list[Seen]:
    """Return what the last server wrote of the admitted nodes; of one that it did not see, only the name."""
    try:
        content = json.loads(path.read_text("utf-8"))
        written, nodes = datetime.fromisoformat(content["written"]), dict(content["nodes"])
        is_running = content["is_running"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return [Seen(name, None, None, None, None) for name in names]
    age_s = ((now or datetime.now(UTC)) - written).total_seconds()
    runs = is_running and age_s < STALE_S
    return [_seen(name, nodes.get(name), runs) for name in names]


def _seen(name: str, found: Any, runs: bool) -> Seen:
    known = found if isinstance(found, dict) else {}
    last_seen, software, does = (_text(known.get(key)) for key in ("last_seen", "software", "does"))
    return Seen(name, known.get("here") is True if runs else None, last_seen, software, does)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
