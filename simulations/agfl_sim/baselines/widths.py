"""Which width of an elastic model a device of each tier should use, in widths.json: how good each is, and how fast.

How good: the owners' validation losses with each ring and without it, as sums over those who hold it. How fast:
measured on this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agfl_models.errors import CheckpointError, DataError
from agfl_models.files.durable_files import read_json_lines, write_atomically
from agfl_models.files.store import CONFIG_FILE, METRICS_FILE
from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig, load_run_config

FILE = "widths.json"
TIE = 0.002  # losses that differ by less are alike, and the faster width is taken
_REPEATS = 5


@dataclass(frozen=True)
class Width:
    """One width of the trained model.

    owners: that trained its ring in the last round, None for the narrowest; gain: share of the loss that its ring
    takes away, None where it was not trained; ms: of reading a batch of the run's size, the least of five; use: the
    width that a device of this tier should use.
    """

    width: float
    num_parameters: int
    flops_per_token: int
    owners: int | None
    gain: float | None
    ms: float
    use: float


def write_widths(folder: Path, owners: Sequence[Path]) -> None:
    """Write OUTPUT/widths.json of the finished run in `folder`; of a model that is not elastic nothing is written.

    owners: files of examples; the first that can be used is the one to be fast or slow on.

    Raises:
        AgflError: one line for a person.
    """
    config = load_run_config(folder / CONFIG_FILE)
    if config.elastic is None:
        return
    gains, holders = _last_of(folder / METRICS_FILE, config.max_rings)
    batch = _a_batch(config, owners)
    speeds = [_milliseconds(config, k, batch) for k in range(1, config.max_rings + 1)]
    chosen = choose(gains, speeds)
    widths = config.elastic.widths
    table = [
        Width(
            width,
            config.narrowed_model(k).num_parameters(),
            config.narrowed_model(k).flops_per_token(config.task.context_length),
            holders[k - 1],
            gains[k - 1],
            round(speeds[k - 1], 3),
            widths[chosen[k - 1]],
        )
        for k, width in enumerate(widths, start=1)
    ]
    try:
        write_atomically(folder / FILE, json.dumps([asdict(one) for one in table], indent=1).encode())
    except OSError as error:
        raise CheckpointError("AGFL-CHECKPOINT-043", f"{folder / FILE}: cannot be written: {error.strerror}") from None


def choose(gains: Sequence[float | None], speeds: Sequence[float]) -> list[int]:
    """Return for each tier the index of the width to use: of those with the least loss that it holds, the fastest.

    gains: of each ring over the model without it; the first one's is None, and that of a ring that nobody trained, from
    which on there is nothing to use.
    """
    losses = [1.0]
    for gain in gains[1:]:
        if gain is None:
            break
        losses.append(losses[-1] * (1 - gain))
    chosen = []
    for tier in range(len(gains)):
        held = losses[: tier + 1]
        alike = [k for k, loss in enumerate(held) if loss <= min(held) * (1 + TIE)]
        chosen.append(min(alike, key=lambda k: speeds[k]))
    return chosen


def read_widths(path: Path) -> list[Width]:
    """Return what `write_widths` wrote, or nothing where it wrote nothing; raises DataError."""
    if not path.exists():
        return []
    try:
        return [Width(**one) for one in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError("AGFL-DATA-079", f"{path}: must hold the widths of a run as it writes them: {error}") from None


def _last_of(path: Path, num_rings: int) -> tuple[list[float | None], list[int | None]]:
    """Return gain and owners of each ring, as they were told last."""
    rows: list[Mapping[str, float | None]] = list(read_json_lines(path))

    def last(what: str, k: int) -> float | None:
        return next((value for row in reversed(rows) if (value := row[f"rings/{what}_{k}"]) is not None), None)

    outer = range(2, num_rings + 1)
    owners = (last("owners", k) for k in outer)
    return [None, *(last("gain", k) for k in outer)], [None, *(None if n is None else round(n) for n in owners)]


def _a_batch(config: RunConfig, owners: Sequence[Path]) -> Any:
    task = config.build_task()
    for owner in owners:
        try:
            held_out = task.hold_out(config.task.read(owner)[0])
        except DataError:
            continue  # its node refused each round, and the run did without
        return next(iter(held_out.validation(config.training.batch_size, 64)))
    raise DataError("AGFL-DATA-080", "data: at least one owner must have text that can be used, none has")


def _milliseconds(config: RunConfig, num_rings: int, batch: Any) -> float:
    model = build_model(config.narrowed_model(num_rings), seed=0).eval()
    task = config.build_task()
    seconds = []
    with torch.no_grad():
        for _ in range(_REPEATS):
            started = time.perf_counter()
            task.loss(model, batch)
            seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)
