"""What a server step is worth where owners' labels differ: handwritten digits, twenty owners, three client rates.

1,400 digits (8 x 8 pixels) are divided by Dirichlet(0.1) label skew, 70 an owner (Hsu et al. 2019, arXiv:1909.06335),
of which each holds 7 out; 397 more are the test. Ten owners a round take ten steps with batches of 16. Sums are means
in floating point, weighted as in a run; `auto` sees the loss on what the round's owners hold out, as in a run. Printed
is the accuracy, the mean of the last ten models, over the seeds, and the spread between them; then how far `auto` is
from the best arm alone and from FedAvg. All of it takes about fifteen minutes on a core of its own. Needs scikit-learn
for the digits (the test set of UCI's optdigits, Alpaydin and Kaynak 1998), or the file from its wheel.

    python simulations/benchmarks/quality/digits_steps.py [--rounds 80] [--seeds 3] [--digits digits.csv.gz] [--smoke]

B batch, T time (1: a digit is a sequence of one), P pixels, C classes, d parameters, M models that a round broadcasts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from server_steps import mean, report_auto, spread
from torch import Tensor
from torch.nn import functional as F

from agfl_client.training.evaluation import validation_loss
from agfl_client.training.trainer import BatchTrainer
from agfl_models import AutoGenModel
from agfl_models.tasks.evaluation import HeldOut
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.config.training_config import SGDConfig, TrainingConfig
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.methods import candidates
from agfl_protocol.methods.square_norm import SQUARE_NORM
from agfl_protocol.optimizers import ServerOptimizerConfig, build_optimizer
from agfl_protocol.optimizers.portfolio import PortfolioConfig
from agfl_protocol.update import Layout, Mean, Vector, square_sum

NUM_OWNERS, COHORT, HELD_OUT, TRAIN = 20, 10, 7, 1400
STEPS, BATCH, ALPHA, LAST = 10, 16, 0.1, 10
RATES = (0.03, 0.1, 0.3)
MODEL: dict[str, Any] = {
    "layers": [
        {"type": "ff", "input_dim": 64, "hidden_dim": 64, "output_dim": 32, "activation": "gelu"},
        {"type": "ff", "input_dim": 32, "hidden_dim": 32, "output_dim": 10, "activation": "gelu"},
    ]
}


@dataclass(frozen=True)
class Digits:
    """Digits with their labels; as one owner's dataset, the last `HELD_OUT` are not trained on."""

    x_BTP: Tensor
    y_B: Tensor

    def to(self, device: str) -> Digits:
        """Everything is on the CPU."""
        return self

    def at(self, places: NDArray[np.int64]) -> Digits:
        """Return some of them."""
        return Digits(self.x_BTP[torch.from_numpy(places)], self.y_B[torch.from_numpy(places)])

    def sample(self, batch_size: int, rng: np.random.Generator) -> Digits:
        """Return a batch to train on."""
        return self.at(rng.integers(len(self.y_B) - HELD_OUT, size=batch_size))

    def validation(self, batch_size: int, max_examples: int) -> Iterator[Digits]:
        """Yield what is held out."""
        yield self.at(np.arange(len(self.y_B) - HELD_OUT, len(self.y_B)))


class Classification:
    """What training needs of a task: cross-entropy."""

    def loss(self, model: AutoGenModel, batch: Digits) -> tuple[Tensor, int]:
        """Return (summed loss, number of digits)."""
        return F.cross_entropy(model(batch.x_BTP)[:, 0], batch.y_B, reduction="sum"), len(batch.y_B)


@dataclass(frozen=True)
class Method:
    """A server step and the clients' pull toward the global model (FedProx)."""

    name: str
    step: ServerOptimizerConfig
    proximal_mu: float = 0.0


def main() -> None:
    """Run everything, printing as results come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--digits", type=Path, help="digits.csv.gz as scikit-learn ships it")
    parser.add_argument("--smoke", action="store_true", help="one round at one rate, of noise instead of digits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = RATES[:1] if options.smoke else RATES
    if options.smoke:
        options.rounds, options.seeds = 1, 1
    digits, all_methods = noise() if options.smoke else load(options.digits), methods()
    print(f"digits, {options.rounds} rounds, {options.seeds} seeds", flush=True)
    for rate in rates:
        found: dict[str, list[float]] = {}
        for method in all_methods:
            found[method.name] = [run(digits, method, rate, seed, options.rounds) for seed in range(options.seeds)]
            values = found[method.name]
            print(f"client lr {rate:<5} {method.name:<20} {mean(values):6.2f} +- {spread(values):.2f}", flush=True)
        arms = [arm_name(arm) for arm in PortfolioConfig(type="auto").arms]
        report_auto(rate, {name: found[name] for name in (*arms, "auto")}, higher_is_better=True)


def methods() -> list[Method]:
    """Return each arm of `auto` alone, `auto`, and three others."""
    config: TypeAdapter[ServerOptimizerConfig] = TypeAdapter(ServerOptimizerConfig)
    auto, fedexp, fedyogi, fedavg = (
        config.validate_python({"type": name}) for name in ("auto", "fedexp", "fedyogi", "fedavg")
    )
    arms = [Method(arm_name(arm), arm) for arm in PortfolioConfig(type="auto").arms]
    others = [Method("fedexp", fedexp), Method("fedyogi lr 0.01", fedyogi), Method("fedprox mu 0.1", fedavg, 0.1)]
    return [*arms, Method("auto", auto), *others]


def arm_name(arm: Any) -> str:
    """Name an arm as `server_steps` does."""
    return f"{arm.type} lr {arm.lr:g}"


def load(path: Path | None) -> Digits:
    """Return the 1,797 digits, pixels between 0 and 1."""
    if path is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise SystemExit("digits_steps: needs scikit-learn, or --digits digits.csv.gz from its wheel") from None
        pixels, labels = load_digits(return_X_y=True)
    else:
        table = np.loadtxt(path, delimiter=",")
        pixels, labels = table[:, :-1], table[:, -1]
    x_BTP = torch.from_numpy(np.asarray(pixels / 16, np.float32)[:, None])
    return Digits(x_BTP, torch.from_numpy(np.asarray(labels, np.int64)))


def noise() -> Digits:
    """Return as many digits as `load`, without anything to see on them."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((1797, 1, 64), np.float32), rng.integers(0, 10, 1797)
    return Digits(torch.from_numpy(pixels), torch.from_numpy(labels))


def divide(digits: Digits, rng: np.random.Generator) -> tuple[list[Digits], Digits]:
    """Return the owners' digits, each owner's labels drawn from its own Dirichlet(ALPHA), and the test."""
    order = rng.permutation(len(digits.y_B))
    labels = digits.y_B.numpy()
    pools = [[int(i) for i in order[:TRAIN] if labels[i] == label] for label in range(10)]
    owners = []
    for _ in range(NUM_OWNERS):
        shares, places = rng.dirichlet(np.full(10, ALPHA)), []
        for _ in range(TRAIN // NUM_OWNERS):
            left = (shares + 1e-9) * [len(pool) > 0 for pool in pools]
            places.append(pools[rng.choice(10, p=left / left.sum())].pop())
        owners.append(digits.at(rng.permutation(places)))
    return owners, digits.at(order[TRAIN:])


def run(digits: Digits, method: Method, rate: float, seed: int, rounds: int) -> float:
    """Return the accuracy in percent, the mean of the last models; owners, cohorts and batches follow from `seed`."""
    rng = np.random.default_rng(seed)
    owners, test = divide(digits, rng)
    training = TrainingConfig(
        optimizer=SGDConfig(type="sgd", lr=rate), batch_size=BATCH, local_steps=STEPS, proximal_mu=method.proximal_mu
    )
    optimizer, module = build_optimizer(method.step), AutoGenModel(MODEL, seed)
    layout = Layout.of(module)
    model = layout.flatten(module)
    state, right = optimizer.initial_state(model), []
    for number in range(rounds):
        models = optimizer.broadcast(model, state).reshape(-1, layout.size)
        cohort = [owners[i] for i in rng.choice(NUM_OWNERS, COHORT, replace=False)]
        with np.errstate(over="ignore", invalid="ignore"):
            model, state = optimizer.step(model, total(cohort, module, layout, models, training, rng), state)
        if number >= rounds - LAST:
            layout.load(module, model)
            with torch.no_grad():
                right.append(float((module(test.x_BTP)[:, 0].argmax(-1) == test.y_B).float().mean()))
    return 100 * mean(right)


def total(
    cohort: Sequence[Digits],
    module: AutoGenModel,
    layout: Layout,
    models: NDArray[np.float32],
    training: TrainingConfig,
    rng: np.random.Generator,
) -> Mean:
    """Return the mean of the cohort's updates, and the sums that optimizers look at, over models (M, d)."""
    task, trainer = cast(AnyTask, Classification()), BatchTrainer()
    deltas: list[Vector] = []
    sums = dict.fromkeys(candidates.names(len(models)), 0.0)
    for owner in cohort:
        dataset = cast(Dataset[Any], owner)
        losses = [0.0] * len(models)
        for i, one in enumerate(models if len(models) > 1 else ()):
            layout.load(module, one)
            losses[i], _ = validation_loss(module, HeldOut(task, dataset, BATCH, HELD_OUT))
        added = candidates.sums(losses, HELD_OUT)
        sums = {name: value + added[name] for name, value in sums.items()}
        layout.load(module, models[0])
        deltas.append(trainer.train(LocalWork(module, layout, task, dataset, rng, training)).delta)
    squares = math.fsum(square_sum(delta) for delta in deltas) / len(deltas)
    mean_delta: Vector = np.stack(deltas).mean(axis=0)  # all weigh alike: as many steps and digits
    return Mean(mean_delta, len(deltas), {**sums, SQUARE_NORM: squares})


if __name__ == "__main__":
    main()
