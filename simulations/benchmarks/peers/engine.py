"""Runs one engine in this process; what `compare.py` starts, once for each engine and repetition.

python simulations/benchmarks/peers/engine.py ENGINE WORKLOAD FOLDER COHORT ROUNDS PROCESSORS
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch
from meter import Meter
from workloads import WORKLOADS, Users, Workload


def measure(name: str, work: Workload, folder: Path, rounds: int) -> None:
    """Run an engine on the users in a folder, and write model.npy and report.json to `folder/name`."""
    torch.set_num_threads(1)
    importlib.import_module(name).run(work, Users.read(work, folder), rounds, Meter(rounds, folder / name))


def main() -> None:
    """Run it on so many processors."""
    name, workload, folder, cohort, rounds, processors = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(processors) :])
    measure(name, WORKLOADS[workload].cut(int(cohort)), Path(folder), int(rounds))


if __name__ == "__main__":
    main()
