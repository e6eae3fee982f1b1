"""Your own PyTorch module on your own data, federated with secure sums: five owners of handwritten digits.

Nothing of the package is edited: a task and a model register themselves, and the run names them as any other. Run it:

    python simulations/examples/own_model_on_digits.py runs/digits
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agfl_models.examples import Row, write_rows
from agfl_models.model.base_config import FAMILIES, OwnModelConfig
from agfl_models.tasks.config import TASKS
from agfl_models.tasks.own_task import OwnTaskConfig, Tensors
from agfl_models.tasks.task import MainMetric
from agfl_models.validation import dump_yaml
from agfl_protocol.config.run_config import load_run_config
from agfl_server.rounds.observer import Observer
from agfl_sim.run import simulate


class Digit(Row):
    """A line of an owner's file: 8 x 8 pixels from 0 to 16, and the digit that they show."""

    pixels: tuple[float, ...]
    digit: int


@TASKS.register
class DigitsConfig(OwnTaskConfig):
    """Which digit is it?"""

    row = Digit
    main_metric = MainMetric("eval/accuracy", "accuracy", 0.0, 1.0, higher_is_better=True)
    sums = ("eval/right",)

    type: Literal["digits"]

    def collate(self, rows: Sequence[Digit]) -> Tensors:
        return torch.tensor([row.pixels for row in rows]) / 16, torch.tensor([row.digit for row in rows])

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        pixels, digits = batch
        return F.cross_entropy(model(pixels), digits, reduction="none")

    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, float]:
        pixels, digits = batch
        return {"eval/right": float((model(pixels).argmax(dim=1) == digits).sum())}

    def scores(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"eval/accuracy": sums["eval/right"] / sums["eval/examples"]}


@FAMILIES.register
class MLPConfig(OwnModelConfig):
    """A perceptron with one hidden layer."""

    family: Literal["mlp"]
    hidden: int = 64

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))


def run(folder: Path, num_rounds: int = 20) -> list[Path]:
    """Write five owners' files and train on them, leaving everything in `folder`; return the files."""
    table = np.loadtxt(Path(__file__).with_name("digits.csv.gz"), delimiter=",")
    rows = [Digit(pixels=tuple(line[:-1]), digit=int(line[-1])) for line in table]
    (folder / "data").mkdir(parents=True)
    for i in range(5):
        write_rows(folder / "data" / f"owner-{i}.jsonl", rows[i::5])
    content = {
        "num_rounds": num_rounds,
        "task": {"type": "digits"},
        "model": {"family": "mlp"},
        "data": {"path": str(folder / "data")},
        "evaluation": {"every": num_rounds},
    }
    (folder / "run.yaml").write_text(dump_yaml(content))
    return simulate(load_run_config(folder / "run.yaml"), folder / "run", "inline", False, Observer(), tell=print)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
    run(out)
    print((out / "run" / "metrics.jsonl").read_text().splitlines()[-1])
