"""Benchmarks still run, at their smallest size; each fails where a child does."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import round_overhead
from tests.commands import run

FOLDER = Path(__file__).parents[2] / "simulations" / "benchmarks"
PRINTED = {
    "secure_sums/secure_sum.py": "client: CPU milliseconds",
    "secure_sums/secure_round.py": "extra",
    "speed/round_overhead.py": "agfl, a whole round",
    "hostile/kept_moments.py": "with moments that begin anew",
    "peers/compare.py": "the same aggregate each time, to 0.001 of its norm",
    "hostile/repeats.py": "another run id, not approved: 64 of 64 refused",
    "absent_owners/availability.py": "refusals 0",
    "speed/decoding_speed.py": "ratio of the medians",
    "speed/large_model.py": "models above its start",
    "speed/stacked.py": "stacked, 3",
    "speed/masked_sum.py": "the sum is that of what was drawn",
    "speed/transport.py": "of the stream",
    "speed/engines.py": "the same model each time",
    "quality/digits_steps.py": "than fedavg lr 1",
    "quality/elastic_devices.py": "elastic, width 0.25",
    "quality/search_synthetic.py": "local   right",
    "quality/server_steps.py": "than fedavg lr 1",
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_benchmark_runs_and_prints_what_it_measured(name: str, tmp_path: Path) -> None:
    done = run(FOLDER / name, "--smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert PRINTED[name] in done.stdout, done.stdout + done.stderr


def test_a_benchmark_whose_child_fails_ends_at_once_with_what_it_said(tmp_path: Path) -> None:
    """As round_overhead.py waits for a server and its nodes."""
    with ExitStack() as processes:
        waits = round_overhead.Started(subprocess.Popen(["sleep", "60"]), tmp_path / "server.log")
        processes.callback(waits.process.wait)
        processes.callback(waits.process.kill)
        (tmp_path / "node0.log").write_text("error: no such policy")
        fails = round_overhead.Started(subprocess.Popen(["false"]), tmp_path / "node0.log")
        with pytest.raises(SystemExit, match=r"^node0: exit status 1:\nerror: no such policy$"):
            round_overhead.wait_for_all([waits, fails], 60)
        assert waits.process.poll() is None
