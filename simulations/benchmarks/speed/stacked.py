"""Seconds a round of local training, owners stacked against one by one on a device, and how far apart updates are.

Workloads A and C are those of benchmarks/peers: a convolutional network and a perceptron. D is a language model of 4.3
million parameters with AdamW, L one of 100 million in bfloat16. There is no server and no wire: both ways train the
same owners on the same batches in this process, in turn, on one thread; the first round of each warms up. On a busy
machine the processor's seconds say more than the wall's. FLOP/s are 6 for each parameter and token (Kaplan et al. 2020,
arXiv:2001.08361).

    python simulations/benchmarks/speed/stacked.py [A C D L] [--stack 10 25] [--owners 50] [--rounds 3] [--device cuda]
        [--smoke]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "peers"))
from ours import Classification
from workloads import SEED, WORKLOADS, Workload

from agfl_client.training.trainer import BatchTrainer
from agfl_models.examples import TextRow
from agfl_models.model.model import AutoGenModel
from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tasks.own_task import OwnTask, TensorBatch
from agfl_models.tasks.task import AnyTask
from agfl_models.tokenizers.tokenizer import Tokenizer
from agfl_protocol.config.training_config import TrainingConfig
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_protocol.update import Layout
from agfl_sim.engines.stacked.loop import train_together
from agfl_sim.engines.stacked.rendezvous import distance

# Width, attention and feed-forward layers, sequence length, steps of a round, precision.
LANGUAGE = {"D": (256, 4, 128, 8, "float32"), "L": (768, 14, 512, 4, "bfloat16"), "text": (16, 1, 16, 2, "float32")}
STACKS = {"A": [10, 25, 50], "C": [10, 25, 100], "D": [4, 8], "L": [2, 4], "smoke": [3], "text": [2]}
OWNERS = {"A": 50, "C": 100, "D": 8, "L": 4, "smoke": 4, "text": 4}
Setting: TypeAlias = tuple[nn.Module, AnyTask, Sequence[Any], TrainingConfig]  # of a workload; data: of each owner


@dataclass(frozen=True)
class Images:
    """An owner's examples, which `epoch` shuffles."""

    tensors: tuple[Tensor, ...]

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[TensorBatch]:
        """Yield every example once."""
        for places in torch.split(torch.from_numpy(rng.permutation(len(self.tensors[0]))), batch_size):
            yield TensorBatch(tuple(tensor[places] for tensor in self.tensors))


@dataclass
class Way:
    """One way to train a round. wall, cpu: seconds of each round but the first; results: of the last round."""

    train: Callable[[list[LocalWork]], Sequence[LocalResult | Exception]]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    results: list[LocalResult] = field(default_factory=list)

    def run(self, works: list[LocalWork], *, counts: bool) -> None:
        """Train a round, and note what it took."""
        wait_for(works[0].device)
        wall, cpu = time.monotonic(), time.process_time()
        found = self.train(works)
        wait_for(works[0].device)
        if counts:
            self.wall.append(time.monotonic() - wall)
            self.cpu.append(time.process_time() - cpu)
        self.results = [one for one in found if isinstance(one, LocalResult)]
        if len(self.results) < len(works):
            raise SystemExit(f"an owner failed: {found}")


def wait_for(device: str) -> None:
    """Return once a device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def images(work: Workload, count: int) -> Setting:
    """Return model, task, owners' data and settings of a workload of benchmarks/peers."""
    rng = np.random.default_rng(SEED)
    settings = {"optimizer": {"type": "sgd", "lr": work.lr}, "batch_size": work.batch, "local_epochs": 1}
    data = []
    for size in work.sizes(rng, count).tolist():
        inputs = rng.integers(work.values, size=(size, work.width), dtype=np.uint8)
        data.append(Images((torch.from_numpy(inputs), torch.from_numpy(rng.integers(work.labels, size=size)))))
    task = OwnTask(Classification(width=work.width, validation_fraction=0.0))
    return work.model(), task, data, TrainingConfig.model_validate({**settings, "max_grad_norm": None})


def texts(name: str, count: int) -> Setting:
    """Return model, task, owners' data and settings of a language model."""
    dim, repeat, length, steps, precision = LANGUAGE[name]
    pair = [{"type": "attention", "num_heads": max(dim // 64, 1)}, {"type": "ff", "hidden_dim": 4 * dim}]
    model = AutoGenModel({"vocab_size": 259, "dim": dim, "layers": [{"repeat": repeat, "layers": pair}]}, seed=SEED)
    task = LanguageModelingConfig(type="language_modeling", sequence_length=length).build(Tokenizer())
    letters = np.random.default_rng(SEED).integers(97, 123, size=(count, 40 * length), dtype=np.uint8)
    rows = [[TextRow(text=own.tobytes().decode()), TextRow(text="held out")] for own in letters]
    settings = {"optimizer": {"type": "adamw", "lr": 1e-3}, "batch_size": 16, "local_steps": steps}
    training = TrainingConfig.model_validate({**settings, "precision": precision})
    return model, task, [task.prepare(own) for own in rows], training


def works_of(name: str, count: int, device: str) -> list[LocalWork]:
    """Return the work of a round; all owners have one model, which whoever trains it in place loads first."""
    found = texts(name, count) if name in LANGUAGE else images(WORKLOADS[name], count)
    model, task, data, training = found
    layout = Layout.of(model.to(device))
    start, works = layout.flatten(model), []
    for number, own in enumerate(data):
        rng = np.random.default_rng(number)
        works.append(LocalWork(model, layout, task, own, rng, training, device, start=start))
    return works


def one_by_one(works: list[LocalWork]) -> list[LocalResult]:
    """Train as a node does."""
    found = []
    for work in works:
        assert work.start is not None
        work.layout.load(work.model, work.start)
        found.append(BatchTrainer().train(work))
    return found


def stacked(size: int) -> Callable[[list[LocalWork]], Sequence[LocalResult | Exception]]:
    """Return what trains so many at a time."""

    def train(works: list[LocalWork]) -> Sequence[LocalResult | Exception]:
        assert works[0].start is not None
        works[0].layout.load(works[0].model, works[0].start)
        groups = [works[start : start + size] for start in range(0, len(works), size)]
        return [one for group in groups for one in train_together(group)]

    return train


def measure(name: str, count: int, sizes: list[int], rounds: int, device: str) -> None:
    """Measure a workload and print a table."""
    works = works_of(name, count, device)
    ways = {"one by one": Way(one_by_one)} | {f"stacked, {size}": Way(stacked(size)) for size in sizes}
    for number in range(rounds + 1):
        for way in ways.values():
            own = [replace(work, rng=np.random.default_rng((number, i))) for i, work in enumerate(works)]
            way.run(own, counts=number > 0)
    size, load = works[0].layout.size, os.getloadavg()[0]
    print(f"\n{name} on {device}: {count} owners, {size:,} parameters, {rounds} rounds, load {load:.1f}")
    heads = f"{'wall s':>9}{'CPU s':>9}{'times one by one: wall':>24}{'CPU':>7}{'updates apart by':>18}{'FLOP/s':>10}"
    print(f"{'':16}{heads}")
    base = ways["one by one"]
    for label, way in ways.items():
        apart = max(distance(one, other) for one, other in zip(base.results, way.results, strict=True))
        wall, cpu = median(way.wall), median(way.cpu)
        quotients = f"{median(base.wall) / wall:24.2f}{median(base.cpu) / cpu:7.2f}"
        tokens = sum(one.num_predictions for one in way.results) if name in LANGUAGE else 0
        rate = f"{6 * size * tokens / wall:10.2e}" if tokens else f"{'':10}"
        print(f"{label:16}{wall:9.3f}{cpu:9.3f}{quotients}{apart:18.1e}{rate}", flush=True)


def main() -> None:
    """Measure each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["A", "C", "D"], help="of A, C, D and L; A C D if omitted")
    parser.add_argument("--stack", nargs="+", type=int, help="owners at a time")
    parser.add_argument("--owners", type=int, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ["smoke", "text"] if options.smoke else options.workloads:
        rounds = 1 if options.smoke else options.rounds
        measure(name, options.owners or OWNERS[name], options.stack or STACKS[name], rounds, options.device)


if __name__ == "__main__":
    main()
