"""Benchmarks still run, at their smallest size; each fails where a child does."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import compare
import pytest
import round_overhead
from engine import measure
from meter import cpu_s
from tests.commands import run
from workloads import WORKLOADS, Users

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


@pytest.mark.parametrize("peer", compare.PEERS)
def test_a_peer_comes_to_the_aggregate_of_the_plain_loop(peer: str, tmp_path: Path) -> None:
    if not compare.has(compare.PEERS[peer]):
        pytest.skip("only where compare.py has installed it")
    work = WORKLOADS["smoke"].cut(2)
    Users.write(work, tmp_path)
    measure(compare.REFERENCE, work, tmp_path, 1)
    compare.run(peer, work, tmp_path, 1, 1)
    assert compare.difference(work, peer, tmp_path) <= compare.TOLERANCE


def test_the_meter_counts_processes_that_have_ended() -> None:
    """NVFlare and Ray end some of theirs within a round."""
    begin = cpu_s()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    script = [sys.executable, "-S", "-c", burn]
    shell = ["sh", "-c", '"$@"; echo; read line', "sh", *script]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()
        assert cpu_s() - begin >= 0.25  # the kernel counts hundredths
    assert cpu_s() - begin >= 0.25  # the kernel counts hundredths


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
