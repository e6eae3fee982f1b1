"""What a server step is worth: the default run with each arm of `auto` alone and with `auto`, at three client rates.

Printed is the main metric of the last model, the mean over the seeds and the spread between them; then how far `auto`
is from the best arm and from FedAvg at each rate. Sums are plain: secure ones change no bit. One run of 16 rounds takes
two to three minutes on two cores, and there are 15 of them for each seed.

    python simulations/benchmarks/quality/server_steps.py [--rounds 16] [--seeds 3] [--config translation] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.optimizers.portfolio import PortfolioConfig
from agfl_server.rounds.observer import Observer
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.partition import owner_files

AUTO, FEDAVG = "auto", "fedavg lr 1"
RATES = (0.05, 0.2, 0.8)
SMOKE = (
    "training.local_steps=1",
    "data.partition=natural",
    "evaluation.max_examples=4",
    "model={vocab_size: 259, dim: 16, layers: [{type: rnn}, {type: ff}]}",
)


def main() -> None:
    """Run everything, printing as results come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="language_modeling")
    parser.add_argument("--smoke", action="store_true", help="one round of a tiny model, at one rate")
    options = parser.parse_args()
    rates, more = (RATES[:1], (*SMOKE, "data.num_owners=4")) if options.smoke else (RATES, ())
    if options.smoke:
        options.rounds, options.seeds = 1, 1
    arms = PortfolioConfig(type="auto").arms
    steps = {arm.label: arm.model_dump_json() for arm in arms} | {AUTO: "{type: auto}"}
    print(f"{options.config}, {options.rounds} rounds, {options.seeds} seeds")
    with tempfile.TemporaryDirectory() as name:
        _compare(options, rates, steps, more, Path(name))


def _compare(
    options: argparse.Namespace,
    rates: Sequence[float],
    steps: Mapping[str, str],
    more: Sequence[str],
    folder: Path,
) -> None:
    """Run every step at every rate, on owners' files in `folder`, which the seed alone says."""
    owners: dict[int, list[Path]] = {}
    for rate in rates:
        found: dict[str, list[float]] = {}
        for name, step in steps.items():
            for seed in range(options.seeds):
                overrides = (*_overrides(rate, step, seed, options.rounds), *more)
                config = load_run_config(SHIPPED_CONFIGS / f"{options.config}.yaml", overrides)
                if seed not in owners:
                    (folder / str(seed)).mkdir()
                    owners[seed] = owner_files(config, folder / str(seed))
                found.setdefault(name, []).append(_result(config, owners[seed]))
            values = found[name]
            print(f"client lr {rate:<5} {name:<18} {mean(values):8.4f} +- {spread(values):.4f}", flush=True)
        report_auto(rate, found, config.task.main_metric.higher_is_better)


def _overrides(rate: float, step: str, seed: int, rounds: int) -> list[str]:
    return [
        f"training.optimizer={{type: sgd, lr: {rate}}}",
        f"aggregation.server_optimizer={step}",
        f"seed={seed}",
        f"num_rounds={rounds}",
        f"evaluation.every={rounds}",
        "aggregation.type=plain",
    ]


def _result(config: RunConfig, owners: Sequence[Path]) -> float:
    """Return the main metric of the run's last model."""
    with tempfile.TemporaryDirectory() as name:
        InlineEngine(config, owners).run(Path(name), resume=False, observer=Observer())
        last = json.loads((Path(name) / "metrics.jsonl").read_text().splitlines()[-1])
        return float(last[config.task.main_metric.name])


def report_auto(rate: float, scores: dict[str, list[float]], higher_is_better: bool) -> None:
    """Print how far `auto` is from the best of the others and from FedAvg."""
    best = (max if higher_is_better else min)((name for name in scores if name != AUTO), key=lambda n: mean(scores[n]))
    sign = 1 if higher_is_better else -1
    for other in (best, FEDAVG):
        gain = sign * (mean(scores[AUTO]) - mean(scores[other]))
        verb = "better" if gain > 0 else "worse"
        print(f"client lr {rate:<5} auto is {abs(gain):.4f} {verb} than {other}")


def mean(values: list[float]) -> float:
    """Over the seeds."""
    return statistics.fmean(values)


def spread(values: list[float]) -> float:
    """Standard deviation between the seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
