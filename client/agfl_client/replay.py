"""What a node has answered, on disk before the answer leaves: no attempt is answered twice, whatever restarts.

The file replay.json in the node's folder, for each run the last attempt answered and how many of its round:

    {"version": 1, "runs": {"5f0c...": [round, attempt, answered]}}

Within a run (round, attempt) only grows. Runs are never forgotten, or an old one could be answered again; after
MAX_RUNS of them new ones are refused until the owner, and nobody else, removes lines that may be answered again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agfl_models.durable_files import write_atomically
from agfl_models.errors import ConfigError
from agfl_protocol.secagg.context import AttemptId
from agfl_protocol.secagg.errors import ProtocolViolation, require

REPLAY_FILE = "replay.json"
MAX_RUNS = 4096
_VERSION = 1
_MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class _Answered:
    """The last attempt of a run that was answered, and how many attempts at that round were."""

    round: int
    attempt: int
    count: int


class ReplayMemory:
    """The memory of one node; `uploads_per_round` is its owner's bound on attempts at one round.

    Raises:
        ConfigError: the file is there but cannot be read, or does not hold what `record` writes.
    """

    def __init__(self, folder: Path, uploads_per_round: int) -> None:
        self._path = folder / REPLAY_FILE
        self._uploads_per_round = uploads_per_round
        self._runs = _read(self._path)

    def check(self, attempt: AttemptId) -> None:
        """Check that this attempt may be answered.

        Raises:
            ProtocolViolation: it or a later one was answered, its round too often, or too many runs are remembered.
        """
        last = self._runs.get(attempt.run_id)
        if last is None:
            room = len(self._runs) < MAX_RUNS
            # Numbers like C1.3 are the checks of SPEC.md.
            require(room, f"run_id: must be one of the {MAX_RUNS} that this node remembers, got {attempt.run_id!r}")
            return
        newer = (attempt.round, attempt.attempt) > (last.round, last.attempt)
        require(newer, f"attempt: must come after round {last.round} attempt {last.attempt}, got {attempt}")
        if attempt.round == last.round and last.count >= self._uploads_per_round:  # C1.2
            rule = "must be among the attempts at a round that this owner's uploads_per_round allows"
            raise ProtocolViolation(f"attempt: {rule}, got {attempt}")

    def record(self, attempt: AttemptId) -> None:
        """Check, and remember durably that this attempt is being answered.

        Raises:
            ProtocolViolation: as `check`.
            ConfigError: the file cannot be written, so the attempt must not be answered.
        """
        self.check(attempt)
        last = self._runs.get(attempt.run_id)
        count = last.count + 1 if last is not None and last.round == attempt.round else 1
        runs = {**self._runs, attempt.run_id: _Answered(attempt.round, attempt.attempt, count)}
        _write(self._path, runs)
        self._runs = runs


def _read(path: Path) -> dict[str, _Answered]:
    try:
        text = path.read_bytes()[: _MAX_FILE_BYTES + 1]
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise ValueError
        runs = {
            AttemptId(run_id, int(line[0]), int(line[1])).run_id: _Answered(*map(int, line))
            for run_id, line in content["runs"].items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ProtocolViolation):
        raise ConfigError(f"{path}: must hold the answered attempts as this node wrote them; it does not") from None
    return runs


def _write(path: Path, runs: Mapping[str, _Answered]) -> None:
    """Replace the file at once, with mode 0600; durable when this returns."""
    lines = {run_id: [last.round, last.attempt, last.count] for run_id, last in runs.items()}
    content = json.dumps({"version": _VERSION, "runs": lines}).encode()
    try:
        write_atomically(path, content, mode=0o600)
    except OSError as error:
        # The path stays out of the line, which also goes to the server.
        raise ConfigError(f"{REPLAY_FILE}: cannot be written on this node: {error.strerror}") from None
