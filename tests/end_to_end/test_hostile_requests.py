"""The fuzzer of simulations/benchmarks, at a small size: a federation of processes goes on beside it."""

from __future__ import annotations

from pathlib import Path

from tests.commands import run

SCRIPT = Path(__file__).parents[2] / "simulations/benchmarks/hostile/hostile_requests.py"


def test_rounds_go_on_under_hostile_requests() -> None:
    done = run(SCRIPT, "--smoke", timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests: 300\n" in done.stdout
    assert "server lives: True\n" in done.stdout
