"""What a server would learn if owners kept their optimizer's moments from round to round: why they begin anew.

A hostile server asks for one model twice, with and without an owner. What hides the owner is the noise of its batches,
sigma; moments that both answers begin with are no noise. Own error as in `agfl_client.training.own_error`: 1 is nothing
given away.

    python simulations/benchmarks/hostile/kept_moments.py [--smoke]
"""

from __future__ import annotations

import argparse
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agfl_client.training.optimizers.local_optimizer import new_optimizer
from agfl_client.training.own_error import measure_sigma, own_error
from agfl_client.training.trainer import BatchTrainer
from agfl_models.examples import TextRow, read_rows
from agfl_models.model.families import build_model
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.update import Layout, Vector
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.partition import owner_files

OPTIMIZERS = ("{type: adamw, lr: 0.003}", "{type: sgd, lr: 0.3, momentum: 0.9}")
PAIRS, HONEST_OTHERS, WARM_STEPS = 10, 3, 40


@dataclass
class Owner:
    """One that trains whatever it is sent; moments: those of its last answer, where it keeps them."""

    config: RunConfig
    task: AnyTask
    data: Dataset[Any]
    keeps: bool
    model: nn.Module = field(init=False)
    moments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.model = build_model(self.config.model, seed=0)

    def answer(self, start: Vector, seed: int) -> Vector:
        """Return the update (d,) of a model (d,), with fresh batches."""
        layout = Layout.of(self.model)
        layout.load(self.model, start)
        optimizer = new_optimizer(self.config.training, self.model)
        if self.moments is not None:
            optimizer.load_state_dict(self.moments)
        work = LocalWork(self.model, layout, self.task, self.data, np.random.default_rng(seed), self.config.training)
        delta = BatchTrainer(optimizer=optimizer).train(work).delta
        self.moments = deepcopy(optimizer.state_dict()) if self.keeps else None
        return delta


def sigma(config: RunConfig, rows: list[TextRow], *, keeps: bool) -> float:
    """Return the noise of two answers to one model, one after the other, of an owner that has trained a while."""
    task = config.build_task()
    owner = Owner(config, task, task.prepare(rows), keeps)
    start = Layout.of(owner.model).flatten(owner.model)
    for number in range(max(WARM_STEPS // (config.training.local_steps or 1), 2)):
        start = start + owner.answer(start, number)
    return measure_sigma(owner.answer(start, 1001), owner.answer(start, 1002))


def main() -> None:
    """Print a line for each optimizer and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one step of AdamW")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"own error after {PAIRS} pairs of sums with {HONEST_OTHERS} honest others each, one owner of the shipped run"
    )
    print("optimizer, steps a round: sigma, own error with moments that begin anew; with moments that are kept")
    for optimizer in OPTIMIZERS[: 1 if options.smoke else None]:
        for steps in (1,) if options.smoke else (1, 5, 20):
            settings = ("data.num_owners=6", f"training.local_steps={steps}", f"training.optimizer={optimizer}")
            config = load_run_config(SHIPPED_CONFIGS / "language_modeling.yaml", settings)
            with tempfile.TemporaryDirectory() as folder:
                rows = read_rows(owner_files(config, Path(folder))[0], TextRow)
            found = [sigma(config, rows, keeps=keeps) for keeps in (False, True)]
            errors = [own_error(PAIRS, one, HONEST_OTHERS) for one in found]
            assert errors[1] < errors[0], "kept moments make answers alike"
            both = "; ".join(f"{one:.2f}, {error:.2f}" for one, error in zip(found, errors, strict=True))
            print(f"{optimizer}, {steps}: {both}", flush=True)


if __name__ == "__main__":
    main()
