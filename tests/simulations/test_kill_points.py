"""A simulation that is killed at any point of an exchange and resumed ends with the bits of one that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.serverapp import Grid

from agfl_client.ledger.ledger_file import read_entries
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_server.aggregation import secure_sum
from agfl_server.rounds import journal
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import ServerState
from agfl_server.run.run_folder import RunFolder
from agfl_server.transport import messaging
from agfl_sim.engines.inline_engine import InlineEngine

Points = dict[str, Callable[[pytest.MonkeyPatch], None]]
EXCHANGE = 2  # in which the plug is pulled: the first of a process that goes on after round 1


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


def in_journal(before: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """S0: before the number is on disk, and before anybody is asked."""

    def pull(patch: pytest.MonkeyPatch) -> None:
        genuine = journal.Journal.open

        def open_(self: journal.Journal, entry: journal.Entry) -> journal.Records:
            if entry.exchange == EXCHANGE and before:
                raise PulledPlugError
            records = genuine(self, entry)
            if entry.exchange == EXCHANGE:
                raise PulledPlugError
            return records

        patch.setattr(journal.Journal, "open", open_)

    return pull


def in_trip(kind: str) -> Callable[[pytest.MonkeyPatch], None]:
    """S1 to S5: once two clients have replied."""

    def pull(patch: pytest.MonkeyPatch) -> None:
        genuine = messaging.ask_nodes

        def ask(
            grid: Grid, requests: Iterable[Message], timeout_s: float, *bounds: int
        ) -> Iterator[tuple[int, Message]]:
            requests = list(requests)
            for number, found in enumerate(genuine(grid, requests, timeout_s, *bounds)):
                if number == 2 and requests[0].metadata.message_type == kind:
                    raise PulledPlugError
                yield found

        patch.setattr(secure_sum, "ask_nodes", ask)

    return pull


def at_record(trip: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Between two trips; S6 after the last."""

    def pull(patch: pytest.MonkeyPatch) -> None:
        genuine = journal._Files.write

        def write(self: journal._Files, name: str, content: Mapping[str, bytes | memoryview]) -> None:
            genuine(self, name, content)
            if name == trip:
                raise PulledPlugError

        patch.setattr(journal._Files, "write", write)

    return pull


def at_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """S7."""
    genuine = RunFolder.save

    def save(self: RunFolder, config: RunConfig, state: ServerState, rows: Any) -> ServerState:
        after = genuine(self, config, state, rows)
        if state.exchange == EXCHANGE:
            raise PulledPlugError
        return after

    patch.setattr(RunFolder, "save", save)


POINTS: Points = {
    "S0 before": in_journal(before=True),
    "S0 after": in_journal(before=False),
    "S1": in_trip(wire.TRAIN),
    "S2": in_trip(sw.SHARE),
    "S3": in_trip(sw.MASK),
    "S4": in_trip(sw.AGREE),
    "S5": in_trip(sw.UNMASK),
    "S3 stored": at_record("3-sum"),
    "S6": at_record("5-openings"),
    "S7": at_checkpoint,
}


def result(folder: Path, config: RunConfig) -> tuple[Any, ...]:
    """All that a run leaves, but for how long it took."""
    state = load_checkpoint(folder / "checkpoints", config.hash)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    owners = {
        path.name: [
            (e["event"], e["round"], e["exchange"]) for e in read_entries(path / "ledger.jsonl") if "exchange" in e
        ]
        for path in sorted((folder / "nodes").iterdir())
    }
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, state.model.tobytes(), state.exchange, [{**row, "seconds": 0} for row in rows], owners


@dataclass
class Copying(Observer):
    """Copies what is in the folder when the exchange begins in which the plug is pulled."""

    folder: Path
    copy: Path

    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        if round_number == EXCHANGE:
            shutil.copytree(self.folder, self.copy)


def test_a_kill_anywhere_in_an_exchange_changes_no_bit(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    """In a simulation the clients end with the server, so the exchange is theirs to forget, too."""
    owners = sorted(make_owners(4).iterdir())
    config = run_config("num_rounds=2", "aggregation={type: secure}", "training.local_steps=1")
    copying = Copying(tmp_path / "whole", tmp_path / "after round 1")
    InlineEngine(config, owners).run(copying.folder, resume=False, observer=copying)
    whole = result(tmp_path / "whole", config)
    assert all(len(events) == 3 * 4 for events in whole[-1].values()), "two rounds and the last evaluation"
    for point, pull in POINTS.items():
        shutil.copytree(copying.copy, tmp_path / point)
        with pytest.MonkeyPatch.context() as patch:
            pull(patch)
            with pytest.raises(PulledPlugError):
                InlineEngine(config, owners).run(tmp_path / point, resume=True, observer=Observer())
        InlineEngine(config, owners).run(tmp_path / point, resume=True, observer=Observer())
        assert result(tmp_path / point, config) == whole, point
