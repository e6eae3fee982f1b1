"""Your own PyTorch module on your own data, federated with secure sums: five owners of handwritten digits.

Nothing of the package is edited: the task and the model are two classes, and `simulate` gets an object of each. Run it:

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

import agfl
from agfl_models.examples import Row
from agfl_models.model.base_config import OwnModelConfig
from agfl_models.tasks.own_task import OwnTaskConfig, Tensors
from agfl_models.tasks.task import MainMetric


class Digit(Row):
    """A line of an owner's file: 8 x 8 pixels from 0 to 16, and the digit that they show."""

    pixels: tuple[float, ...]
    digit: int


class DigitsConfig(OwnTaskConfig):
    """Which digit is it?"""

    row = Digit
    main_metric = MainMetric("eval/accuracy", "accuracy", 0.0, 1.0, higher_is_better=True)
    sums = ("eval/right",)

    type: Literal["digits"] = "digits"

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


class MLPConfig(OwnModelConfig):
    """A perceptron with one hidden layer."""

    family: Literal["mlp"] = "mlp"
    hidden: int = 64

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))


RUN = {"num_rounds": 20, "evaluation": {"every": 20}}


def run(folder: str) -> agfl.History:
    """Deal the digits to five owners and train on them, leaving everything in `folder`."""
    table = np.loadtxt(Path(__file__).with_name("digits.csv.gz"), delimiter=",")
    rows = [{"pixels": line[:-1].tolist(), "digit": int(line[-1])} for line in table]
    owners = {f"owner-{i}": rows[i::5] for i in range(5)}
    history = agfl.simulate(RUN, task=DigitsConfig(), model=MLPConfig(), owners=owners, out=folder, progress=False)
    print(f"accuracy on what owners hold out: {history.rows[-1]['eval/accuracy']:.1%}")
    return history


if __name__ == "__main__":
    run(sys.argv[1])
