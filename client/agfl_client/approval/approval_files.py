"""The plans that were put to an owner, and its answers: one file a run in the node's folder.

    approvals/RUN_ID.json    {"version": 1, "status": "approved", "plan": "...", "operator": "9f...", ...}
    splits.json              {"language_modeling": 0.1}: how much this node holds out, by task, once and for all

The node writes them, and `agfl-client approve` while the node runs: each change is of what was read under one lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from agfl_models.errors import ConfigError, IdentityError
from agfl_models.files.durable_files import written_atomically
from agfl_models.validation import Config, validate
from agfl_protocol.folder_lock import lock
from agfl_protocol.identity.private_files import read_private
from agfl_protocol.plans.plan import MAX_PLAN_CHARACTERS, Plan, plan_from_json

FOLDER, SPLITS_FILE, SUFFIX = "approvals", "splits.json", ".json"
_MAX_FILE_BYTES = 4 * MAX_PLAN_CHARACTERS


class Status(Enum):
    """What became of a plan."""

    PENDING = "pending"
    APPROVED = "approved"
    REFUSED = "refused"


class Approval(Config):
    """A plan and its owner's answer.

    plan: its canonical text; previous: of the plan of the same run that was approved before. operator: SHA-256 of the
    federation's CA certificate. time: of the last change. by: who answered. sigma: as measured here, None before that.
    """

    version: Literal[1] = 1
    status: Status
    by: Literal["owner", "policy"] | None = None
    time: str
    operator: str
    sigma: Annotated[float, Field(ge=0, le=1)] | None = None
    plan: str
    previous: str | None = None

    def read_plan(self) -> Plan:
        """Return the plan; raises ConfigError."""
        return plan_from_json(self.plan)

    def plan_if_read(self) -> Plan | None:
        """Return the plan; None where another version wrote it, or it names what is not installed here now."""
        try:
            return self.read_plan()
        except ConfigError:
            return None

    def changed(self, **fields: object) -> Approval:
        """Return it with other values, and the time of now."""
        return Approval.model_validate({**self.model_dump(), "time": now(), **fields})


class ApprovalFiles:
    """The files of one node; no line of an error has a path in it, since the server may get it.

    Raises:
        ConfigError: the folder cannot be made. The same, of a file that cannot be read or written, of all methods.
    """

    def __init__(self, folder: Path) -> None:
        self._home, self._folder = folder, folder / FOLDER
        self._known: dict[str, tuple[_Stamp, Approval]] = {}
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError("AGFL-CONFIG-051", f"{FOLDER}: cannot be made on this node: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the files while the block reads and writes them."""
        descriptor = lock(self._folder, wait=True)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def read(self, run_id: str) -> Approval | None:
        """Return what is known of a run, as it stands on disk now; None where there is nothing."""
        path = self._path(run_id)
        try:
            stamp = _stamp(path.stat())
        except FileNotFoundError:
            return None
        if run_id not in self._known or self._known[run_id][0] != stamp:
            self._known[run_id] = (stamp, _read(path, f"{FOLDER}/{path.name}"))
        return self._known[run_id][1]

    @property
    def names(self) -> list[str]:
        """The runs of which something is known, sorted."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self._folder.glob(f"[!.]*{SUFFIX}"))

    def read_all(self) -> dict[str, Approval]:
        """Return all runs, the one that changed last at the end."""
        found = {name: approval for name in self.names if (approval := self.read(name)) is not None}
        return dict(sorted(found.items(), key=lambda item: item[1].time))

    def write(self, run_id: str, approval: Approval) -> None:
        """Replace what is known of a run."""
        path = self._path(run_id)
        stamp = _write(path, f"{FOLDER}/{path.name}", approval.model_dump_json())
        if stamp.size <= _MAX_FILE_BYTES:  # else it cannot be read
            self._known[run_id] = (stamp, approval)

    def remove(self, run_id: str) -> None:
        """Forget a run."""
        self._path(run_id).unlink(missing_ok=True)
        self._known.pop(run_id, None)

    def splits(self) -> Mapping[str, float]:
        """Return how much this node holds out, by task."""
        try:
            content = json.loads(read_private(self._home / SPLITS_FILE))
            return {str(task): float(fraction) for task, fraction in content.items()}
        except IdentityError as error:
            if not (self._home / SPLITS_FILE).exists():
                return {}
            raise _not_read(SPLITS_FILE, error) from None
        except (ValueError, TypeError, AttributeError):
            raise ConfigError(
                "AGFL-CONFIG-052", f"{SPLITS_FILE}: must hold fractions by task, as this node wrote them"
            ) from None

    def write_splits(self, splits: Mapping[str, float]) -> None:
        """Replace them."""
        _write(self._home / SPLITS_FILE, SPLITS_FILE, json.dumps(dict(splits), sort_keys=True))

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}{SUFFIX}"


class _Stamp(NamedTuple):
    """What tells a file from the one that takes its place."""

    time: int
    size: int
    inode: int


def _stamp(found: os.stat_result) -> _Stamp:
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def now() -> str:
    """Return the time, as the files have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(path: Path, name: str) -> Approval:
    try:
        content = read_private(path)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(
                "AGFL-CONFIG-053", f"{name}: must have at most {_MAX_FILE_BYTES} bytes, got {len(content)}"
            )
        return validate(Approval, json.loads(content), name)
    except IdentityError as error:
        raise _not_read(name, error) from None
    except (ValueError, RecursionError):
        raise ConfigError(
            "AGFL-CONFIG-054", f"{name}: must be an approval as this node wrote it; it is malformed"
        ) from None


def _write(path: Path, name: str, content: str) -> _Stamp:
    """Write a file and return its stamp, which is taken before anybody else can put another one in its place."""
    try:
        with written_atomically(path, mode=0o600) as file:
            file.write(content.encode())
            file.flush()
            return _stamp(os.fstat(file.fileno()))
    except OSError as error:
        raise ConfigError("AGFL-CONFIG-055", f"{name}: cannot be written on this node: {error.strerror}") from None


def _not_read(name: str, error: IdentityError) -> ConfigError:
    """Return the error of a file, without its path: the line also goes to the server."""
    if "closed" in error.sentence:
        return ConfigError("AGFL-CONFIG-056", f"{name}: must be closed to group and others")
    return ConfigError("AGFL-CONFIG-057", f"{name}: cannot be read on this node")
