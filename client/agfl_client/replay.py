"""What a node has answered, on disk before the answer leaves: no exchange is answered twice, whatever restarts.

The file replay.json in the node's folder, for each run the last exchange answered and how many of its round:

    {"version": 1, "runs": {"5f0c...": [round, exchange, answered]}}

Within a run (round, exchange) only grows. Runs are never forgotten, or an old one could be answered again; after
MAX_RUNS of them new ones are refused until the owner, and nobody else, removes lines that may be answered again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agfl_models.durable_files import write_atomically
from agfl_models.errors import ConfigError
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.errors import ProtocolViolation, require

REPLAY_FILE = "replay.json"
MAX_RUNS = 4096
_VERSION = 1
_MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class _Answered:
    """The last exchange of a run that was answered, and how many exchanges at that round were."""

    round: int
    exchange: int
    count: int


class ReplayMemory:
    """The memory of one node; `uploads_per_round` is its owner's bound on exchanges at one round.

    Raises:
        ConfigError: the file is there but cannot be read, or does not hold what `record` writes.
    """

    def __init__(self, folder: Path, uploads_per_round: int) -> None:
        self._path = folder / REPLAY_FILE
        self._uploads_per_round = uploads_per_round
        self._runs = _read(self._path)

    def check(self, exchange: ExchangeId) -> None:
        """Check that this exchange may be answered.

        Raises:
            ProtocolViolation: it or a later one was answered, its round too often, or too many runs are remembered.
        """
        last = self._runs.get(exchange.run_id)
        if last is None:
            room = len(self._runs) < MAX_RUNS
            # Numbers like C1.3 are the checks of SPEC.md.
            require(room, f"run_id: must be one of the {MAX_RUNS} that this node remembers, got {exchange.run_id!r}")
            return
        newer = (exchange.round, exchange.exchange) > (last.round, last.exchange)
        require(newer, f"exchange: must come after round {last.round} exchange {last.exchange}, got {exchange}")
        if exchange.round == last.round and last.count >= self._uploads_per_round:  # C1.2
            rule = "must be among the exchanges at a round that this owner's uploads_per_round allows"
            raise ProtocolViolation(f"exchange: {rule}, got {exchange}")

    def record(self, exchange: ExchangeId) -> None:
        """Check, and remember durably that this exchange is being answered.

        Raises:
            ProtocolViolation: as `check`.
            ConfigError: the file cannot be written, so the exchange must not be answered.
        """
        self.check(exchange)
        last = self._runs.get(exchange.run_id)
        count = last.count + 1 if last is not None and last.round == exchange.round else 1
        runs = {**self._runs, exchange.run_id: _Answered(exchange.round, exchange.exchange, count)}
        _write(self._path, runs)
        self._runs = runs


def _read(path: Path) -> dict[str, _Answered]:
    try:
        text = path.read_bytes()[: _MAX_FILE_BYTES + 1]
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise ValueError
        runs = {
            ExchangeId(run_id, int(line[0]), int(line[1])).run_id: _Answered(*map(int, line))
            for run_id, line in content["runs"].items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ProtocolViolation):
        raise ConfigError(f"{path}: must hold the answered exchanges as this node wrote them; it does not") from None
    return runs


def _write(path: Path, runs: Mapping[str, _Answered]) -> None:
    """Replace the file at once, with mode 0600; durable when this returns."""
    lines = {run_id: [last.round, last.exchange, last.count] for run_id, last in runs.items()}
    content = json.dumps({"version": _VERSION, "runs": lines}).encode()
    try:
        write_atomically(path, content, mode=0o600)
    except OSError as error:
        # The path stays out of the line, which also goes to the server.
        raise ConfigError(f"{REPLAY_FILE}: cannot be written on this node: {error.strerror}") from None
