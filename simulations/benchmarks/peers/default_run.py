"""Workload D, the shipped language_modeling run: what it costs beside a plain loop over the same owners and batches.

agfl adds up secure sums with their masks. Neither evaluates, updates are not clipped and the server takes their mean,
so that both come to the same model. The two run in turn, each in a process of its own; the first round does not count.

    python simulations/benchmarks/peers/default_run.py [--rounds 3] [--repetitions 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from statistics import median

import numpy as np
import torch
from compare import TOLERANCE
from meter import Meter
from ours import Clock
from torch import nn
from torch.optim import SGD
from workloads import flat

from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.config.training_config import SGDConfig
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.randomness import OwnerRandomness, first_model_seed
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.partition import owner_files

SETTINGS = ("evaluation.every=1000", "aggregation.server_optimizer={type: fedavg}", "aggregation.clip_l2=100")


def ours(config: RunConfig, owners: list[Path], folder: Path, meter: Meter) -> None:
    """Run it in this process, with one thread."""
    InlineEngine(config, owners, "cpu", 1).run(folder / "run", resume=False, observer=Clock(meter))


def plain_loop(config: RunConfig, owners: list[Path], folder: Path, meter: Meter) -> None:
    """Do the same work, with no wire."""
    task, training = config.client_plan.build_task(), config.training
    assert isinstance(training.optimizer, SGDConfig)
    assert training.local_steps
    assert training.max_grad_norm
    data = [(path.stem, task.prepare(config.task.read(path)[0])) for path in owners]
    model = build_model(config.model, first_model_seed(config.seed))
    for number in range(1, config.num_rounds + 1):
        total, count = np.zeros_like(flat(model)), 0
        for name, dataset in data:
            rng = OwnerRandomness.of_seed(config.seed, name).generator("", number, "batches")
            own, predictions = deepcopy(model).train(), 0
            optimizer = SGD(own.parameters(), training.optimizer.lr)
            for _ in range(training.local_steps):
                optimizer.zero_grad()
                loss, size = task.loss(own, dataset.sample(training.batch_size, rng))
                torch.autograd.backward(loss / size)
                nn.utils.clip_grad_norm_(own.parameters(), training.max_grad_norm)
                optimizer.step()
                predictions += size
            total, count = total + np.float32(predictions) * flat(own), count + predictions
        with torch.no_grad():
            nn.utils.vector_to_parameters(torch.from_numpy(total / np.float32(count)), model.parameters())
        meter.round_ends(flat(model))


WAYS = {"plain_loop": plain_loop, "ours": ours}


def measure(way: str, rounds: int, out: Path) -> None:
    """Run one of them and leave its report in `out`."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    torch.set_num_threads(1)
    prepare_flower()
    config = load_run_config(SHIPPED_CONFIGS / "language_modeling.yaml", (f"num_rounds={rounds + 1}", *SETTINGS))
    with tempfile.TemporaryDirectory() as folder:
        owners = owner_files(config, Path(folder) / "owners")
        WAYS[way](config, owners, Path(folder), Meter(rounds + 1, out))


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        measure(options.one[0], options.rounds, Path(options.one[1]))
        return
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repetitions):
            for way in WAYS:
                command = [sys.executable, __file__, "--rounds", str(options.rounds), "--one", way, folder]
                subprocess.run(command, check=True)
                cpu[way] += json.loads((Path(folder) / "report.json").read_text())["cpu"]
                models[way] = np.load(Path(folder) / "model.npy")
    config = load_run_config(SHIPPED_CONFIGS / "language_modeling.yaml")
    first = flat(build_model(config.model, first_model_seed(config.seed)))
    difference = np.linalg.norm(models["ours"] - models["plain_loop"]) / np.linalg.norm(models["plain_loop"] - first)
    print(f"D: {options.rounds} rounds x {options.repetitions}, load {os.getloadavg()[0]:.1f}")
    for way, seconds in cpu.items():
        ratio = median(seconds) / median(cpu["plain_loop"])
        print(f"{way:14}{median(seconds):9.3f} CPU s a round, {ratio:.2f} of the plain loop's")
    print(f"what the first round changes differs by {difference:.1e} of its norm")
    if not difference <= TOLERANCE:
        sys.exit("another model than that of the plain loop")


if __name__ == "__main__":
    main()
