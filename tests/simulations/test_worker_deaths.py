"""A worker that is killed changes no bit of a run: another one takes its place inside the same exchange."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.serverapp import Grid
from tests.forked_workers import ForkedWorker, die_at_owner_01, fail_at_owner_01
from tests.simulations.run_result import result

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT
from agfl_server.aggregation import plain_sum, secure_sum
from agfl_server.rounds.observer import Observer
from agfl_server.transport import messaging
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes import worker_process
from agfl_sim.engines.processes.engine import ProcessesEngine

SECURE = "aggregation={type: secure, min_cohort: 3, max_colluders: 1}"
STATE = ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform")
TOKENIZER = ("tokenizer={type: bpe, vocab_size: 275, merges_per_round: 8}", "model.vocab_size=275")
TRIPS = (wire.TRAIN, sw.SHARE, sw.MASK, sw.AGREE, sw.UNMASK)
Configs = Callable[..., RunConfig]
MakeOwners = Callable[[int], Path]


def kill_in(
    patch: pytest.MonkeyPatch, kind: str, workers: list[ForkedWorker], time: int = 2, times: int = 1
) -> list[int]:
    """Have workers killed once two nodes have answered in a trip, in the `time`-th of its kind; return how often."""
    genuine, trips, killed = messaging.ask_nodes, [0], list[int]()

    def ask(grid: Grid, requests: Iterable[Message], timeout_s: float, *bounds: int) -> Iterator[tuple[int, Message]]:
        requests = list(requests)
        trips[0] += requests[0].metadata.message_type == kind
        for number, found in enumerate(genuine(grid, requests, timeout_s, *bounds)):
            at_last = requests[0].metadata.message_type == kind and trips[0] >= time
            if at_last and number == 1 and len(killed) < times:
                killed.append(workers[-1].pid)
                workers[-1].kill()
                workers[-1].wait(20)
            yield found

    patch.setattr(secure_sum, "ask_nodes", ask)
    patch.setattr(plain_sum, "ask_nodes", ask)
    return killed


@pytest.mark.parametrize(
    ("settings", "trips"), [(TOKENIZER, (COUNT, sw.MASK)), (STATE, TRIPS)], ids=["tokenizer", "state"]
)
def test_kill_in_each_trip_changes_no_bit(
    settings: tuple[str, ...],
    trips: tuple[str, ...],
    run_config: Configs,
    make_owners: MakeOwners,
    tmp_path: Path,
    workers: list[ForkedWorker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = run_config("num_rounds=2", "training.local_steps=1", "evaluation.max_examples=4", SECURE, *settings)
    owners = sorted(make_owners(4).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "whole", resume=False, observer=Observer())
    whole = result(tmp_path / "whole")
    for trip in trips:
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            killed = kill_in(patch, trip, workers)
            folder = tmp_path / trip
            ProcessesEngine(config, owners, "cpu", 2).run(folder, resume=False, observer=Observer())
        assert len(killed) == 1, trip
        assert result(folder) == whole, trip
        (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        number = int(signal.SIGKILL)
        rule = rf"worker \d was ended by signal {number} while it worked for owner-\d\d; it is started again"
        assert re.fullmatch(rule, line), line


def test_kill_in_a_plain_exchange_changes_no_bit(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    config, owners = run_config("num_rounds=2", *STATE), sorted(make_owners(5).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "whole", resume=False, observer=Observer())
    with pytest.MonkeyPatch.context() as patch:
        killed = kill_in(patch, wire.TRAIN, workers)
        ProcessesEngine(config, owners, "cpu", 1).run(tmp_path / "torn", resume=False, observer=Observer())
    assert len(killed) == 1
    assert result(tmp_path / "torn") == result(tmp_path / "whole")


def launch_with(patch: pytest.MonkeyPatch, at_round: Callable[[str], None]) -> None:
    patch.setattr(worker_process, "launch", lambda descriptor: ForkedWorker(descriptor, at_round))


def test_worker_that_dies_again_and_again_ends_the_run_in_one_line(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose owner takes more memory than there is; the run may go on on a larger machine."""
    config, owners = run_config(SECURE), sorted(make_owners(3).iterdir())
    launch_with(monkeypatch, die_at_owner_01)
    with pytest.raises(ConfigError) as given_up:
        ProcessesEngine(config, owners, "cpu", 2).run(tmp_path / "run", resume=False, observer=Observer())
    line = (
        r"--engine processes: worker \d was ended by signal 9 while it worked for owner-01, 3 times in one exchange; "
        r"go on with --resume \[AGFL-CONFIG-282\]"
    )
    assert re.fullmatch(line, str(given_up.value))
    InlineEngine(config, owners, "cpu").run(tmp_path / "whole", resume=False, observer=Observer())
    InlineEngine(config, owners, "cpu").run(tmp_path / "run", resume=True, observer=Observer())
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_defect_of_a_node_comes_up_with_its_traceback(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_with(monkeypatch, fail_at_owner_01)
    engine = ProcessesEngine(run_config(), sorted(make_owners(3).iterdir()), "cpu", 2)
    with pytest.raises(worker_process.DefectError, match=r"(?s)Traceback.*ZeroDivisionError: a defect"):
        engine.run(tmp_path / "run", resume=False, observer=Observer())
