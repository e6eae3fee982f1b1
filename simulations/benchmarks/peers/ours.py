"""agfl, through its door for a module of one's own: nothing of the package is edited, and the wire is the real one."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from meter import Meter
from safetensors.numpy import load_file
from torch import Tensor, nn
from workloads import SEED, WORKLOADS, Users, Workload

import agfl
from agfl_models.examples import Row as ExampleRow
from agfl_models.model.base_config import OwnModelConfig
from agfl_models.tasks.own_task import OwnTaskConfig, Tensors
from agfl_models.tasks.task import MainMetric
from agfl_server.rounds.checkpoint import newest_checkpoint
from agfl_server.rounds.observer import Observer, Row


class Example(ExampleRow):
    """An input as bytes in base 64, and its label."""

    input: str
    label: int


class Classification(OwnTaskConfig):
    """Which label is it?"""

    row = Example
    main_metric = MainMetric("eval/accuracy", "accuracy", 0.0, 1.0, higher_is_better=True)
    sums: ClassVar[tuple[str, ...]] = ("eval/right",)

    type: Literal["peers"] = "peers"
    width: int

    def collate(self, rows: Sequence[Example]) -> Tensors:
        """Return inputs, uint8 (B, width), and labels, int64 (B,)."""
        inputs = np.frombuffer(b"".join([base64.b64decode(row.input) for row in rows]), np.uint8)
        return torch.tensor(inputs).view(-1, self.width), torch.tensor([row.label for row in rows])

    def loss(self, model: nn.Module, batch: Tensors) -> Tensor:
        """Return the loss of each example, (B,)."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, float]:
        """Return how many are right."""
        return {"eval/right": float((model(batch[0]).argmax(dim=1) == batch[1]).sum())}

    def scores(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Return the share of them."""
        return {"eval/accuracy": sums["eval/right"] / sums["eval/examples"]}


class Model(OwnModelConfig):
    """A workload's."""

    family: Literal["peers"] = "peers"
    workload: str

    def build(self) -> nn.Module:
        """Return it as every engine begins with it."""
        return WORKLOADS[self.workload].model()


class Clock(Observer):
    """Notes each round as it ends."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._folder = meter, Path()

    def opened(self, config: object, folder: Path) -> None:
        """Remember where the run is."""
        self._folder = folder

    def saved(self, rows: Sequence[Row]) -> None:
        """Read the model of the round, which is a moment's work."""
        model = load_file(newest_checkpoint(self._folder / "checkpoints"))["model"]
        self._meter.round_ends(model)


def _rows(users: Users, user: int) -> list[dict[str, Any]]:
    inputs, labels = users.of(user)
    texts = [base64.b64encode(line).decode() for line in np.ascontiguousarray(inputs)]
    return [{"input": text, "label": label} for text, label in zip(texts, labels.tolist(), strict=True)]


def run(work: Workload, users: Users, rounds: int, meter: Meter) -> None:
    """Train with plain sums: more owners than a secure sum has members."""
    settings = {
        "num_rounds": rounds,
        "seed": SEED,
        "evaluation": {"every": 1000},
        "training": {
            "optimizer": {"type": "sgd", "lr": work.lr},
            "batch_size": work.batch,
            "local_epochs": 1,
            "max_grad_norm": None,
        },
        "aggregation": {
            "type": "plain",
            "cohort_size": work.cohort,
            "server_optimizer": {"type": "fedavg"},
            "averaging": "mean",
            "clip_l2": 100.0,
            "max_weight": 400.0,
        },
    }
    task = Classification(width=work.width, validation_fraction=0.0)
    with tempfile.TemporaryDirectory() as folder:
        agfl.simulate(
            settings,
            task=task,
            model=Model(workload=work.name),
            owners=agfl.Population(work.users, lambda user: _rows(users, user)),
            callbacks=[Clock(meter)],
            out=Path(folder) / "run",
            engine="inline",
            progress=False,
        )
