"""A signal whose exception somebody else's code took for its own ends the run all the same, at the next exchange."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tests.commands import Started, run

from agfl_server.run.sittings import read_sittings

# The real command, but for a call in the first exchange in which the signal comes: its exception is lost, or wrapped.
LOSES = """
import os, signal, sys, time
from agfl_sim.progress import ProgressObserver

number, wraps, sent = int(sys.argv.pop(1)), sys.argv.pop(1) == "wraps", []

def client_finished(self, name):
    if not sent:
        sent.append(name)
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except BaseException as error:
            if wraps:
                raise RuntimeError("as pydantic does of what its serializers raise") from error

ProgressObserver.client_finished = client_finished
from agfl_sim.cli import main
main()
"""
CONFIG = """
num_rounds: 3
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 8, layers: [{type: ff}]}
training: {batch_size: 2, local_steps: 1}
aggregation: {type: plain, min_cohort: 2}
data: {partition: natural, num_owners: 3}
"""


@pytest.mark.parametrize(("number", "how"), [(signal.SIGTERM, "loses"), (signal.SIGINT, "wraps")])
def test_a_signal_that_was_lost_ends_the_run(number: int, how: str, tmp_path: Path) -> None:
    (tmp_path / "loses.py").write_text(LOSES)
    (tmp_path / "run.yaml").write_text(CONFIG)
    done = run(tmp_path / "loses.py", str(number), how, "run.yaml", "--output", "out", cwd=tmp_path)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "stopped; go on with: " in done.stdout
    assert "Traceback" not in done.stderr
    assert [one.outcome for one in read_sittings(tmp_path / "out")] == ["interrupted"]


def test_a_key_that_is_held_down_stops_a_run_once_and_cleanly(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG.replace("num_rounds: 3", "num_rounds: 300"))
    log = tmp_path / "log"
    process = Started("agfl-simulate", "run.yaml", "--output", "out", cwd=tmp_path, log=log)
    deadline = time.monotonic() + 120
    while not log.exists() or "round   2/" not in log.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(9):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    assert process.wait(60) == 130
    assert "stopped; go on with: " in log.read_text()
    assert "Traceback" not in log.read_text()
