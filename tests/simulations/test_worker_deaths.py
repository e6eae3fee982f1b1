"""A worker that is killed changes no bit of a run: another one takes its place inside the same exchange."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.forked_workers import ForkedWorker, die_at_owner_01, fail_at_owner_01
from tests.simulations.killing import kill_in
from tests.simulations.run_result import result

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import COUNT
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.engines.workers import process_link
from agfl_sim.engines.workers.worker_handle import DefectError

SECURE = "aggregation={type: secure, min_cohort: 3, max_colluders: 1}"
STATE = ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform")
TOKENIZER = ("tokenizer={type: bpe, vocab_size: 275, merges_per_round: 8}", "model.vocab_size=275")
TRIPS = (wire.TRAIN, sw.SHARE, sw.MASK, sw.AGREE, sw.UNMASK)
Configs = Callable[..., RunConfig]
MakeOwners = Callable[[int], Path]


def last_of(workers: list[ForkedWorker]) -> Callable[[], None]:
    def kill() -> None:
        workers[-1].kill()
        workers[-1].wait(20)

    return kill


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
            killed = kill_in(patch, trip, last_of(workers))
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
        killed = kill_in(patch, wire.TRAIN, last_of(workers))
        ProcessesEngine(config, owners, "cpu", 1).run(tmp_path / "torn", resume=False, observer=Observer())
    assert len(killed) == 1
    assert result(tmp_path / "torn") == result(tmp_path / "whole")


def test_replacement_that_dies_before_it_is_ready_is_replaced_too(
    run_config: Configs,
    make_owners: MakeOwners,
    tmp_path: Path,
    workers: list[ForkedWorker],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a machine that goes down with the first one, before its cluster knows."""
    config, owners = run_config("num_rounds=2", *STATE), sorted(make_owners(3).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "whole", resume=False, observer=Observer())
    whole_launch = process_link.launch

    def launch(descriptor: int) -> ForkedWorker:
        found = whole_launch(descriptor)
        assert isinstance(found, ForkedWorker)
        if len(workers) == 2:
            found.kill()
        return found

    monkeypatch.setattr(process_link, "launch", launch)
    kill_in(monkeypatch, wire.TRAIN, last_of(workers))
    ProcessesEngine(config, owners, "cpu", 1).run(tmp_path / "torn", resume=False, observer=Observer())
    assert result(tmp_path / "torn") == result(tmp_path / "whole")
    doing = [
        re.search(r"while it (\w+) for owner-\d\d; it is started again", record.message)
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]
    assert [found and found[1] for found in doing] == ["worked", "started"]


def launch_with(patch: pytest.MonkeyPatch, at_round: Callable[[str], None]) -> None:
    patch.setattr(process_link, "launch", lambda descriptor: ForkedWorker(descriptor, at_round))


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
    with pytest.raises(DefectError, match=r"(?s)Traceback.*ZeroDivisionError: a defect"):
        engine.run(tmp_path / "run", resume=False, observer=Observer())
