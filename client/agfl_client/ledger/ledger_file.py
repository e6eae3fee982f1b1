"""The file of an owner's ledger: lines that are only ever added, each bound to all before it by its hash.

    {"event":"left","exchange":12,"hash":"9f3c...","n":31,"names":[...],"round":9,"run":"5f0c...","time":"2026-..."}

hash = SHA-256 of the hash of the line before (64 zeros before the first) and the line's own canonical JSON without it.
So a line can neither be changed, left out nor put in later, unless all that follow are written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.files.durable_files import read_json_lines
from agfl_models.files.file_systems import sync, sync_folder
from agfl_protocol.identity.private_files import check_private
from agfl_protocol.plans.plan_fields import canonical

log = logging.getLogger("agfl.client")
LEDGER_FILE = "ledger.jsonl"
FIRST_HASH = "0" * 64


class LedgerFile:
    """The file of one node, for the one process that writes it; `past` is what stood there when it was opened.

    Raises:
        ConfigError: the chain is broken, or the file cannot be read or mended.
        IdentityError: it is open to group or others.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER_FILE
        if not self._path.exists():
            _create(self._path)
        self.past = read_entries(self._path)
        self._hash = self.past[-1]["hash"] if self.past else FIRST_HASH
        self._count = len(self.past)
        self._size = _whole_size(self._path)
        torn = self._path.stat().st_size - self._size
        if torn:
            log.warning("%s: its last line was cut short by a crash; its %d bytes are removed", LEDGER_FILE, torn)
            self._write(b"")

    def append(self, event: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add a line, durable when this returns; return it. What a failure leaves of it goes before the next one.

        Raises:
            ConfigError: it cannot be written, so what it tells of must not happen.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {**fields, "n": self._count + 1, "time": now, "event": event}
        line["hash"] = _hash(self._hash, line)
        content = canonical(line).encode() + b"\n"
        self._write(content)
        self._size, self._count, self._hash = self._size + len(content), self._count + 1, line["hash"]
        return line

    def _write(self, content: bytes) -> None:
        try:
            _write_at(self._path, self._size, content)
        except OSError as error:
            # The path stays out of the line, which also goes to the server.
            raise ConfigError(
                "AGFL-CONFIG-062", f"{LEDGER_FILE}: cannot be written on this node: {error.strerror}"
            ) from None


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ledger, checked; one that is being written, or was cut short, is left out.

    Raises:
        ConfigError: it cannot be read, or the chain is broken: names the first line that does not follow.
        IdentityError: it is missing, or open to group or others.
    """
    check_private(path)
    try:
        entries = read_json_lines(path)
    except CheckpointError as error:
        raise ConfigError.of(error, error.sentence) from None
    return list(_checked(entries, path))


def _checked(entries: list[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    previous = FIRST_HASH
    for number, entry in enumerate(entries, start=1):
        content = {key: value for key, value in entry.items() if key != "hash"}
        if entry.get("n") != number or entry.get("hash") != _hash(previous, content):
            raise ConfigError(
                "AGFL-CONFIG-063", f"{path}:{number}: must follow from the line before by its hash; it does not"
            )
        previous = entry["hash"]
        yield entry


def _hash(previous: str, content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))  # as `canonical`, but of any damage
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError("AGFL-CONFIG-064", f"{path}: cannot be made: {error.strerror}") from None


def _whole_size(path: Path) -> int:
    """Return how many bytes the whole lines have."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while size:
            start = max(size - 2**16, 0)
            file.seek(start)
            end = file.read(size - start).rfind(b"\n") + 1
            if end:
                return start + end
            size = start
    return 0


def _write_at(path: Path, size: int, content: bytes) -> None:
    """Write after the first `size` bytes, which are whole lines, in place of whatever else is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_size < size:
            raise OSError(5, "is shorter than it was")
        os.ftruncate(descriptor, size)
        os.lseek(descriptor, size, os.SEEK_SET)
        while content:
            content = content[os.write(descriptor, content) :]
        sync(descriptor, path)
    finally:
        os.close(descriptor)
