"""The work that every engine does: the same users, models and batches in the same order, all of it from a seed.

What agfl draws, the others repeat: the cohort of a round, and the order in which an owner's examples are trained on.
Users have whole batches, so that such an order is one of examples alone, which any engine can be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from agfl_protocol.randomness import OwnerRandomness
from agfl_server.rounds.sampling import sample_names
from agfl_sim.population import Numbered

SEED = 7
Bytes = NDArray[np.uint8]
Sizes = Callable[[np.random.Generator, int], NDArray[np.int64]]


class Pixels(nn.Module):
    """Bytes as numbers from 0 to 1, in a shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Return them, (B, *shape)."""
        return x.float().div_(255).view(-1, *self.shape)


class Characters(nn.Module):
    """LEAF's model of Shakespeare: the next of 80 characters, after 80 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(80, 8), nn.LSTM(8, 256, 2, batch_first=True)
        self.head = nn.Linear(256, 80)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the next character, (B, 80)."""
        states: Tensor = self.lstm(self.embedding(x.long()))[0]
        logits: Tensor = self.head(states[:, -1])
        return logits


def _cnn() -> nn.Module:
    """Return pfl-research's `simple_cnn` without dropout, so that models can be compared."""
    convolutions = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(Pixels(3, 32, 32), *convolutions, nn.Linear(12_544, 128), nn.ReLU(), nn.Linear(128, 10))


def _mlp() -> nn.Module:
    layers = (nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 62))
    return nn.Sequential(Pixels(784), *layers)


def _tiny() -> nn.Module:
    return nn.Sequential(Pixels(16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def _equal(size: int) -> Sizes:
    return lambda rng, users: np.full(users, size)


def _lognormal(rng: np.random.Generator, users: int) -> NDArray[np.int64]:
    """Return 20 to 400 examples, 122 in the mean, in whole batches of 20."""
    return np.clip(np.round(rng.lognormal(4.6, 0.64, users) / 20) * 20, 20, 400).astype(np.int64)


def _few(rng: np.random.Generator, users: int) -> NDArray[np.int64]:
    """Return one to three batches of 4, so that weights matter at the smallest size, too."""
    return 4 * rng.integers(1, 4, users)


@dataclass(frozen=True)
class Workload:
    """An input is `width` bytes below `values`, a label one below `labels`; a round is one epoch of plain SGD."""

    name: str
    users: int
    cohort: int
    sizes: Sizes
    width: int
    values: int
    labels: int
    batch: int
    lr: float
    new_model: Callable[[], nn.Module]

    def cut(self, cohort: int | None) -> Workload:
        """Return it with a smaller cohort."""
        return self if cohort is None else replace(self, cohort=min(cohort, self.cohort))

    def model(self) -> nn.Module:
        """Return the model with which every engine begins."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)  # the other one keeps a stack trace for GPUs each time
            return self.new_model()

    def names(self) -> Numbered:
        """Return the users' names in agfl."""
        return Numbered(self.users)

    def cohort_of(self, round_number: int) -> list[int]:
        """Return whom a round asks, from 1."""
        names = self.names()
        return [int(name.rpartition("-")[2]) for name in sample_names(names, self.cohort, SEED, round_number)]

    def order(self, user: int, round_number: int, size: int) -> NDArray[np.int64]:
        """Return the order in which a user's examples are trained on in a round."""
        rng = OwnerRandomness.of_seed(SEED, self.names()[user]).generator("", round_number, "batches")
        shuffled = rng.permutation(size).reshape(-1, self.batch)
        return shuffled[rng.permutation(len(shuffled))].reshape(-1)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("A", 1000, 50, _equal(50), 3072, 256, 10, 10, 0.1, _cnn),
        Workload("B", 660, 10, _equal(40), 80, 80, 80, 10, 0.5, Characters),
        Workload("C", 3400, 100, _lognormal, 784, 256, 62, 20, 0.1, _mlp),
        Workload("smoke", 9, 4, _few, 16, 256, 4, 4, 0.1, _tiny),
    )
}


@dataclass(frozen=True)
class Users:
    """All users' examples, one after another, in files that are mapped to memory."""

    work: Workload
    inputs: Bytes
    labels: Bytes
    ends: NDArray[np.int64]
    folder: Path

    @staticmethod
    def write(work: Workload, folder: Path) -> None:
        """Make them: noise around one pattern for each label."""
        rng = np.random.default_rng(SEED)
        sizes = work.sizes(rng, work.users)
        labels = rng.integers(work.labels, size=int(sizes.sum()), dtype=np.uint8)
        inputs = rng.integers(work.values // 2, size=(labels.size, work.width), dtype=np.uint8)
        inputs += rng.integers(work.values // 2, size=(work.labels, work.width), dtype=np.uint8)[labels]
        arrays: dict[str, NDArray[Any]] = {"inputs": inputs, "labels": labels, "ends": np.cumsum(sizes)}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    @staticmethod
    def read(work: Workload, folder: Path) -> Users:
        """Map them."""
        inputs, labels, ends = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("inputs", "labels", "ends"))
        return Users(work, inputs, labels, ends, folder)

    def of(self, user: int) -> tuple[Bytes, Bytes]:
        """Return a user's inputs (n, width) and labels (n,)."""
        rows = slice(int(self.ends[user - 1]) if user else 0, int(self.ends[user]))
        return self.inputs[rows], self.labels[rows]

    def in_order(self, user: int, round_number: int) -> tuple[Tensor, Tensor]:
        """Return a user's inputs, uint8 (n, width), and labels, int64 (n,), in the order of a round's batches."""
        inputs, labels = self.of(user)
        order = self.work.order(user, round_number, len(labels))
        return torch.from_numpy(inputs[order]), torch.from_numpy(labels[order].astype(np.int64))


def batches(work: Workload, inputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a round."""
    return zip(torch.split(inputs, work.batch), torch.split(labels, work.batch), strict=True)


def loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of a batch."""
    return F.cross_entropy(model(inputs), labels)


def flat(model: nn.Module) -> NDArray[np.float32]:
    """Return a model's parameters, (d,)."""
    vector: NDArray[np.float32] = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    return vector
