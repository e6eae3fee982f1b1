"""Seconds a round of the shipped language_modeling run, by engine: one thread, a thread or a process a processor.

Each engine runs in a process of its own, in turn, so that what else the machine does falls on all of them. The first
round, in which owners read their text, does not count. Seconds of a processor are those of the driver and its workers;
on a busy machine they say more than the wall. All engines must end with the same model, bit for bit.

    python simulations/benchmarks/speed/engines.py [--rounds 3] [--repetitions 3] [--smoke]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import load_run_config
from agfl_protocol.flower_settings import prepare_flower
from agfl_server.rounds.observer import Observer, Row
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.partition import owner_files

ENGINES = {"inline, 1 worker": 1, "inline": usable_cpus(), "processes": usable_cpus()}
SMALL = ("training.local_steps=1", "data.partition=natural", "data.num_owners=6", "model.dim=16")
_TICKS = os.sysconf("SC_CLK_TCK")


class Clock(Observer):
    """Notes the wall and the seconds of processors at the end of each round."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def round_finished(self, row: Row) -> None:
        own = resource.getrusage(resource.RUSAGE_SELF)
        self.times.append((time.monotonic(), own.ru_utime + own.ru_stime + _of_children()))


def _of_children() -> float:
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        if int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def measure(name: str, rounds: int, settings: tuple[str, ...]) -> dict[str, float | str]:
    """Run it; return the seconds of a round, of the wall and of processors, and the hash of the model."""
    prepare_flower()
    config = load_run_config(SHIPPED_CONFIGS / "language_modeling.yaml", (f"num_rounds={rounds}", *settings))
    kind = ProcessesEngine if name == "processes" else InlineEngine
    with tempfile.TemporaryDirectory() as folder:
        run, clock = Path(folder) / "run", Clock()
        engine = kind(config, owner_files(config, Path(folder) / "owners"), "cpu", ENGINES[name])
        engine.run(run, resume=False, observer=clock)
        model = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    (first_s, first_cpu_s), (last_s, last_cpu_s) = clock.times[-rounds], clock.times[-1]
    measured = rounds - 1
    return {"wall": (last_s - first_s) / measured, "cpu": (last_cpu_s - first_cpu_s) / measured, "model": model}


def main() -> None:
    """Measure all engines in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = ("evaluation.every=1000", *(SMALL if options.smoke else ()))
    rounds, repetitions = (2, 1) if options.smoke else (options.rounds, options.repetitions)
    if options.one is not None:
        print(json.dumps(measure(options.one, rounds, settings)))
        return
    if options.smoke:  # an interpreter less each
        found = {name: [measure(name, rounds, settings)] for name in ENGINES}
    else:
        found = {name: [] for name in ENGINES}
        for _ in range(repetitions):
            for name in ENGINES:
                command = [sys.executable, __file__, "--one", name, "--rounds", str(rounds)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name:18} {found[name][-1]['wall']:6.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    models = {one["model"] for runs in found.values() for one in runs}
    assert len(models) == 1, "the engines must end with the same model"
    base = median(float(one["wall"]) for one in found["inline, 1 worker"])
    print(f"{usable_cpus()} processors, {rounds - 1} rounds after the first, medians of {repetitions}")
    print(f"{'engine':18} {'wall s':>8} {'CPU s':>8} {'times one worker':>18}")
    for name, runs in found.items():
        wall, cpu = (median(float(one[key]) for one in runs) for key in ("wall", "cpu"))
        print(f"{name:18} {wall:8.2f} {cpu:8.2f} {base / wall:18.2f}")
    print(f"the same model each time: {models.pop()}")


if __name__ == "__main__":
    main()
