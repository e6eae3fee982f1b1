"""What unequal devices bring to each other: 24 owners, of whom 10 hold a quarter of the model, 9 a half, and 5 all.

The default run of language modeling is trained four ways: elastic by all; the quarter model by all; the half model by
the 14 that hold it; the whole model by the 5 that hold it. Each model is judged on the held-out text of all 24 owners,
in bits per byte: of all together, and the mean of the worst tenth. The last two are the bar that matters (exclusive
training of the capable): without it every scheme looks good. With `--bytes` each owner has only so much text.

Sums are plain, by the same rules: secure ones change no bit. Four runs a seed, two to three minutes each on two cores.
Then what elastic training costs one node: time and memory of a round, each in a process of its own.

    python simulations/benchmarks/quality/elastic_devices.py [--rounds 16] [--seeds 3] [--bytes 4000] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from server_steps import SMOKE, mean, spread

from agfl_client.training.evaluation import evaluate
from agfl_client.training.part import Part
from agfl_client.training.trainer import BatchTrainer
from agfl_models.examples import TextRow, read_rows, write_rows
from agfl_models.tasks.evaluation import HeldOut
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.randomness import generator
from agfl_protocol.update import Vector
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.observer import Observer
from agfl_server.run.run_folder import RunFolder
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.partition import device_widths, owner_files

WIDTHS = (0.25, 0.5, 1.0)
KINDS = (
    ("plain, whole model", 1.0, False),
    ("elastic, width 1", 1.0, True),
    ("elastic, width 0.5", 0.5, True),
    ("elastic, width 0.25", 0.25, True),
)
DEVICES = {0.25: 10, 0.5: 9, 1.0: 5}
Found = dict[str, tuple[float, float]]  # (bits per byte of all text, of the worst tenth of owners)


def main() -> None:
    """Run everything, printing as results come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bytes", type=int, help="of text that each owner keeps")
    parser.add_argument("--shrinkage", type=float, default=0.5)
    parser.add_argument("--smoke", action="store_true", help="one round of a tiny model on little text")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seeds, options.bytes = 1, 1, 300
    if options.node:
        print(json.dumps(_round_of_node(*json.loads(options.node))))
        return
    print(f"{options.rounds} rounds, {options.seeds} seeds, lambda {options.shrinkage}, text {options.bytes or 'all'}")
    found = [_compare(_config(options, seed), options.bytes) for seed in range(options.seeds)]
    print(f"{'model':<42} {'bits per byte':>14} {'worst tenth':>12}")
    for name in found[0]:
        columns = [list(column) for column in zip(*(seed[name] for seed in found), strict=True)]
        print(f"{name:<42} {_spread(columns[0]):>14} {_spread(columns[1]):>12}")
    _print_costs(_config(options, 0), KINDS[-1:] if options.smoke else KINDS)


def _config(options: argparse.Namespace, seed: int) -> RunConfig:
    overrides = (
        f"seed={seed}",
        f"num_rounds={options.rounds}",
        f"evaluation.every={options.rounds}",
        f"elastic={{widths: {list(WIDTHS)}, shrinkage: {options.shrinkage}}}",
        f"data.max_widths={json.dumps(DEVICES).replace(chr(34), '')}",
        "aggregation.type=plain",
        "aggregation.max_colluders=3",
        "aggregation.min_cohort=5",
        *(SMOKE if options.smoke else ()),
    )
    return load_run_config(SHIPPED_CONFIGS / "language_modeling.yaml", overrides)


def _compare(config: RunConfig, num_bytes: int | None) -> Found:
    with tempfile.TemporaryDirectory() as name:
        owners = owner_files(config, Path(name) / "owners")
        if num_bytes is not None:
            for path in owners:
                write_rows(path, _shortened(read_rows(path, TextRow), num_bytes))
        devices = device_widths(config, len(owners))
        capable = {width: [p for p, w in zip(owners, devices, strict=True) if w >= width] for width in WIDTHS}
        rings, elastic = config.build_rings(), _train(config, owners, Path(name) / "elastic")
        found = {}
        for k, width in enumerate(WIDTHS, start=1):
            part = Part.of(config, rings, k, "cpu")
            part.load(elastic)
            found[f"elastic, width {width:g}"] = _judge(part, config, owners)
        for width in WIDTHS:
            alone = _of_width(config, width)
            part = Part.of(alone, None, 1, "cpu")
            part.load(_train(alone, capable[width], Path(name) / f"alone-{width}"))
            found[f"width {width:g}, by the {len(capable[width])} that hold it"] = _judge(part, config, owners)
        for model, (bits, worst) in found.items():
            print(f"seed {config.seed} {model:<42} {bits:.4f} {worst:.4f}", flush=True)
        return found


def _shortened(rows: Sequence[TextRow], num_bytes: int) -> list[TextRow]:
    kept: list[TextRow] = []
    size = 0
    for row in rows:
        if size >= num_bytes and len(kept) >= 2:
            break
        kept.append(row)
        size += len(row.text.encode())
    return kept


def _of_width(config: RunConfig, width: float) -> RunConfig:
    """Return the run of a model that has this width from the start, and no other."""
    model = config.model.resolve() if width == 1 else config.narrowed_model(WIDTHS.index(width) + 1)
    data = config.data.model_copy(update={"max_widths": None})
    return config.model_copy(update={"elastic": None, "model": model, "data": data})


def _train(config: RunConfig, owners: list[Path], folder: Path) -> Vector:
    InlineEngine(config, owners).run(folder, resume=False, observer=Observer())
    return load_checkpoint(RunFolder(folder).checkpoints, config.hash).model


def _judge(part: Part, config: RunConfig, owners: Sequence[Path]) -> tuple[float, float]:
    task, metric, each = config.build_task(), config.task.main_metric.name, []
    total = dict.fromkeys(task.eval_sums, 0.0)
    for path in owners:
        dataset = task.prepare(read_rows(path, config.task.row))
        sums = evaluate(part.model, HeldOut(task, dataset, 16, config.evaluation.max_examples))
        total = {key: value + sums[key] for key, value in total.items()}
        each.append(task.eval_metrics(sums)[metric])
    worst = sorted(each)[-max(1, len(each) // 10) :]
    return task.eval_metrics(total)[metric], mean(worst)


def _print_costs(config: RunConfig, kinds: Sequence[tuple[str, float, bool]]) -> None:
    print(f"{'a round of one node':<42} {'parameters':>11} {'seconds':>8} {'MB':>7}")
    for name, width, is_elastic in kinds:
        argument = json.dumps([config.model_dump_json(), width, is_elastic])
        output = subprocess.run([sys.executable, __file__, "--node", argument], check=True, stdout=subprocess.PIPE)
        size, seconds, megabytes = json.loads(output.stdout)
        print(f"{name:<42} {size:>11,} {seconds:>8.3f} {megabytes:>7.1f}", flush=True)


def _round_of_node(config_json: str, width: float, is_elastic: bool) -> tuple[int, float, float]:
    """Return parameters, the least seconds of five rounds of training, and what memory they took at most."""
    config = RunConfig.model_validate_json(config_json)
    task = config.build_task()
    dataset = task.prepare([TextRow(text="to be or not to be " * 400), TextRow(text="that is the question")])
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what imports took is of no interest
    before = _peak_kilobytes()
    config = config if is_elastic else _of_width(config, width)
    rings = config.build_rings()
    part = Part.of(config, rings, WIDTHS.index(width) + 1 if is_elastic else 1, "cpu")
    seconds = []
    for number in range(5):
        started = time.monotonic()
        rng = generator(0, "node", number, "batches")
        work = LocalWork(part.model, part.layout, task, dataset, rng, config.training, widths=part.widths)
        result = BatchTrainer().train(work)
        part.spread(result.delta)
        seconds.append(time.monotonic() - started)
    return part.layout.size, min(seconds), (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} +- {spread(values):.3f}"


if __name__ == "__main__":
    main()
