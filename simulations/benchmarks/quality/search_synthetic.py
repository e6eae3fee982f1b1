"""Whether a search finds the right operator: three synthetic tasks whose answer is known, several seeds of each.

Each task is ordinary language modeling over bytes, on the files of 20 owners, of whom five train in a round. A model of
two mixers and two feed-forward layers, 32 wide, searches its mixers. Printed is for each task and seed what was chosen,
whether that is right, and the rounds of candidates beside those of an exhaustive search. Sums are plain: secure ones
change no bit.

    parity   bits, and here and there a letter that says the parity of all bits so far. Right: what holds a GRU or the
             gated delta rule, which can flip a state; minGRU cannot (Grazzi et al. 2024, arXiv:2411.12537).
    recall   keys with their values; a key that comes again has its value again. Right: attention behind a recurrent
             layer, which tells a value whose key it follows.
    local    each letter follows from the byte before it, so every candidate solves it. Right: the least FLOPs, within
             the two percent to which parameters are matched.

    python simulations/benchmarks/quality/search_synthetic.py [--seeds 0 1 2 3 4] [--tasks parity local] [--exhaustive]
    python simulations/benchmarks/quality/search_synthetic.py --smoke
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agfl_models.examples import TextRow, write_rows
from agfl_models.validation import validate
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_server.search.search import RACE_FILE
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.partition import owner_files

NUM_OWNERS, DOCUMENTS, LENGTH = 20, 60, 60
LETTERS = "abcdefghijklmnop"
COST_TOLERANCE = 1.02
Told = dict[str, Any]  # a candidate, as search.json has it


@dataclass(frozen=True)
class Synthetic:
    """A task: how a document is made, who is right, and how long the rungs are."""

    document: Callable[[random.Random], str]
    is_right: Callable[[Told, list[Told]], bool]
    rungs: tuple[int, ...]


def parity(rng: random.Random) -> str:
    """Bits; after each, with probability 1/2, "e" or "o" as the number of ones so far is even or odd."""
    text, ones = "", 0
    while len(text) < LENGTH:
        bit = rng.randint(0, 1)
        ones += bit
        text += str(bit) + ("eo"[ones % 2] if rng.random() < 0.5 else "")
    return text


def recall(rng: random.Random) -> str:
    """Six keys, each with a value that is its own in this document; they come in any order, with their values."""
    values = {key: rng.choice("01234567") for key in rng.sample(LETTERS, 6)}
    return "".join(key + values[key] for key in rng.choices(list(values), k=LENGTH // 2))


def local(rng: random.Random) -> str:
    """Letters, and after each the one that always follows it."""
    return "".join(letter + FOLLOWER[letter] for letter in rng.choices(LETTERS, k=LENGTH // 2))


FOLLOWER = dict(zip(LETTERS, random.Random(0).sample(LETTERS.upper(), len(LETTERS)), strict=True))


def _is_cheapest(chosen: Told, candidates: list[Told]) -> bool:
    least: int = min(one["flops_per_token"] for one in candidates)
    return bool(chosen["flops_per_token"] <= COST_TOLERANCE * least)


TASKS = {
    "parity": Synthetic(parity, lambda one, _: one["name"] in ("gru", "gated_delta", "attention+gru"), (4, 4, 8)),
    "recall": Synthetic(recall, lambda one, _: one["name"] in ("attention+mingru", "attention+gru"), (5, 5, 10)),
    "local": Synthetic(local, _is_cheapest, (3, 3, 6)),
}


def main() -> None:
    """Run everything, printing as results come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--exhaustive", action="store_true", help="train every candidate to the end")
    parser.add_argument("--smoke", action="store_true", help="one task, one seed, five owners, one step a rung")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.tasks = [0], ["local"]
    for name in options.tasks:
        right = 0
        for seed in options.seeds:
            right += _search(name, seed, exhaustive=options.exhaustive, smoke=options.smoke)
        print(f"{name:<7} right {right} of {len(options.seeds)}", flush=True)


def _search(name: str, seed: int, *, exhaustive: bool, smoke: bool) -> bool:
    """Return whether a search chooses rightly; print what it does."""
    started, task = time.process_time(), TASKS[name]
    rungs = (sum(task.rungs),) if exhaustive else tuple(1 for _ in task.rungs) if smoke else task.rungs
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), task, seed, rungs, smoke=smoke)
        owners = owner_files(config, Path(folder) / "owners")
        InlineEngine(config, owners).run(Path(folder) / "run", resume=False, observer=Observer())
        race = json.loads((Path(folder) / "run" / "search" / RACE_FILE).read_text())
    (chosen,) = [one for one in race["candidates"] if not one["fate"]]
    is_right = task.is_right(chosen, race["candidates"])
    share = race["candidate_rounds"] / race["exhaustive_rounds"]
    rounds = f"{race['candidate_rounds']} of {race['exhaustive_rounds']} candidate-rounds ({share:.0%})"
    seconds = time.process_time() - started
    verdict = "right" if is_right else "wrong"
    print(f"{name:<7} seed {seed}  {chosen['name']:<17} {verdict}  {rounds}  {seconds:.0f} CPU s", flush=True)
    for one in race["candidates"]:
        losses = " ".join("dead" if loss is None else f"{loss:.3f}" for loss in one["losses"])
        print(f"        {one['name']:<17} {one['flops_per_token']:>7,} FLOPs a token  loss {losses}", flush=True)
    return is_right


def _config(folder: Path, task: Synthetic, seed: int, rungs: tuple[int, ...], *, smoke: bool) -> RunConfig:
    data = folder / "data"
    data.mkdir()
    for owner in range(5 if smoke else NUM_OWNERS):
        rng = random.Random(f"{seed} {owner}")
        rows = [TextRow(text=task.document(rng)) for _ in range(5 if smoke else DOCUMENTS)]
        write_rows(data / f"owner-{owner:02}.jsonl", rows)
    mixers = [{"type": "attention", "num_heads": 2}, {"type": "rnn", "cell": "mingru"}]
    layers = [layer for mixer in mixers for layer in (mixer, {"type": "ff", "hidden_dim": 96})]
    content = {
        "seed": seed,
        "num_rounds": sum(rungs),  # what is measured is the search alone
        "task": {"type": "language_modeling", "sequence_length": 32},
        "model": {"vocab_size": 259, "dim": 32, "layers": layers},
        "training": {
            "optimizer": {"type": "adamw", "lr": 0.005, "weight_decay": 0.0},
            "batch_size": 32,
            "local_steps": 1 if smoke else 10,
        },
        "aggregation": {"type": "plain", "cohort_size": 5, "server_optimizer": {"type": "fedavg"}},
        "evaluation": {"every": 100, "max_examples": 64},
        "data": {"path": str(data)},
        "search": {"rungs": rungs},
    }
    return validate(RunConfig, content, "benchmark")


if __name__ == "__main__":
    main()
