"""What many sums of a server's choice tell of one owner: attacks on real nodes, and the own error that they leave.

    python simulations/benchmarks/hostile/repeats.py --owners 5 --sums 200
    python simulations/benchmarks/hostile/repeats.py --smoke

The run is the shipped language model made small: 24 owners of Shakespeare roles, of whom the first --owners are asked,
55,872 parameters, 24 steps x 4 windows of 32 tokens, after 8 rounds. `own_errors.py` says what an own error is. A sum
takes about 0.25 CPU seconds an owner; each curve is printed as it grows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from hostile_models import MODELS, Disguise
from hostile_server import HostileServer, Refused
from known_text import membership
from own_errors import Known, Target, exposure, formula

from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.update import Vector
from agfl_sim.partition import owner_files

CONFIG = Path(__file__).parents[2] / "agfl_sim/configs/language_modeling.yaml"
SMALL = ("model.dim=32", "task.sequence_length=32")
PAIRS = (1, 4, 16, 64, 100)


@dataclass(frozen=True)
class Study:
    """What an attack is measured on. draws: of an owner's update, for its mean; sums: that are taken."""

    server: HostileServer
    model: Vector
    draws: int
    sums: int

    def updates(self, name: str, model: Vector) -> list[Vector]:
        """Return fresh draws of what an owner sends, as only it can know."""
        return [_drawn(self.server, name, model, i) for i in range(self.draws)]


@dataclass(frozen=True)
class Outcome:
    """The sums (d,) of an attack, as if all had been of its first model, and of whom each was."""

    sums: list[Vector]
    sets: list[frozenset[str]]

    def pairs(self, name: str, count: int) -> float:
        """Return how many pairs the first `count` sums make of an owner."""
        with_it = sum(name in names for names in self.sets[:count])
        return 2 * with_it * (count - with_it) / count


Sets = Callable[[HostileServer, str, int], dict[str, Sequence[str]]]


def frozen(server: HostileServer, victim: str, i: int) -> dict[str, Sequence[str]]:
    """With and without the victim in turn: it announces keys, and its vector is "lost"."""
    return {} if i % 2 == 0 else {"survivors": [name for name in server.names if name != victim]}


def cohorts(server: HostileServer, victim: str, i: int) -> dict[str, Sequence[str]]:
    """The same, but without it from the first trip on."""
    return {} if i % 2 == 0 else {"members": [name for name in server.names if name != victim]}


def turns(server: HostileServer, victim: str, i: int) -> dict[str, Sequence[str]]:
    """Without each owner in turn, so that all are parted at once."""
    return {"survivors": [name for name in server.names if name != server.names[i % len(server.names)]]}


def random_sets(server: HostileServer, victim: str, i: int) -> dict[str, Sequence[str]]:
    """Any survivors that may be."""
    rng, n = np.random.default_rng(i), len(server.names)
    size = int(rng.integers(server.parameters.least_survivors(n), n + 1))
    return {"survivors": sorted(rng.choice(server.names, size, replace=False).tolist())}


ATTACKS: dict[str, tuple[Sets, str]] = {
    "frozen": (frozen, "frozen"),
    "one ulp": (frozen, "ulp"),
    "permuted": (frozen, "permuted"),
    "untrained": (frozen, "untrained"),
    "token-counting": (frozen, "counting"),
    "retries": (frozen, "frozen"),
    "cohorts": (cohorts, "frozen"),
    "turns": (turns, "frozen"),
    "survivors": (random_sets, "frozen"),
}


def prepare(owners: int, sums: int, folder: Path, draws: int, rounds: int, overrides: Sequence[str] = ()) -> Study:
    """Make the federation, and train its model for some honest rounds."""
    config = load_run_config(CONFIG, (*SMALL, f"num_rounds={max(sums, 1)}", *overrides))
    files = owner_files(config, folder / "owners")[:owners]
    server = HostileServer(config, files, folder / "nodes")
    model, velocity = _initial(config), np.zeros(server.layout.size)
    for i in range(rounds):
        mean = np.mean([_drawn(server, name, model, i) for name in server.names], 0)
        velocity = 0.9 * velocity + mean  # the shipped server's step: Nesterov's
        model = (model + 0.7 * (mean + 0.9 * velocity)).astype(np.float32)
    return Study(server, model, draws, sums)


def attack(study: Study, name: str, victim: str) -> Iterator[Outcome]:
    """Take the sums, in a run of its own that all owners approve; yield what there is after each."""
    sets, kind = ATTACKS[name]
    server = study.server
    outcome, disguise = Outcome([], []), MODELS[kind](server.config, study.model)
    server.begin(f"attack-{name.replace(' ', '-')}")
    for i in range(study.sums):
        shown: Disguise = disguise(i)
        asked = sets(server, victim, i)
        request = server.request(shown.model)
        if name == "retries":  # as often in a round as an owner's policy lets vectors leave
            request = replace(request, round=1 + i // 3)
        total = server.train(request, **asked)
        outcome.sums.append(shown.undo(total.delta))
        outcome.sets.append(frozenset(asked.get("survivors", asked.get("members", server.names))))
        yield outcome


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, default=5)
    parser.add_argument("--sums", type=int, default=200)
    parser.add_argument("--draws", type=int, default=32, help="of each owner, for its expected update")
    parser.add_argument("--attacks", nargs="*", choices=sorted(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--membership", action="store_true", help="also say whose text is told apart by the pairs")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; the figures mean nothing")
    args = parser.parse_args()
    prepare_flower()
    torch.set_num_threads(1)
    rounds, overrides = 8, list[str]()
    if args.smoke:
        args.sums, args.draws, rounds, overrides = min(args.sums, 4), 2, 0, ["training.local_steps=2"]
        args.attacks = ["frozen", "permuted", "turns"]
    with tempfile.TemporaryDirectory() as folder:
        study = prepare(args.owners, args.sums, Path(folder), args.draws, rounds, overrides)
        exposed = _exposed(study)
        victim = max(exposed, key=lambda name: exposed[name])
        shown = ", ".join(f"{name} {s:.4f}" for name, s in exposed.items())
        print(f"{args.owners} owners, {study.model.size} parameters; s of each: {shown}", flush=True)
        for name in args.attacks:
            _run(study, name, victim, exposed[victim], has_membership=args.membership and name == "frozen")
        print_refused(study, run_ids=64 if args.smoke else 4096)


def _run(study: Study, name: str, victim: str, s: float, *, has_membership: bool) -> None:
    """Carry out an attack and print what it tells of the victim and of another, or of all where all are parted."""
    started, names = time.monotonic(), study.server.names
    shown = MODELS[ATTACKS[name][1]](study.server.config, study.model)(0)
    model = shown.undo(shown.model)
    wanted = names if name in ("turns", "survivors") else (victim, min(set(names) - {victim}))
    targets = [Target.of(owner, study.updates(owner, model)) for owner in wanted]
    points = {2 * k for k in PAIRS} | {study.sums}
    for outcome in attack(study, name, victim):
        if len(outcome.sums) in points:
            for target in targets:
                _print_point(name, target, outcome, s if target.name == victim else None)
            print(f"    {time.monotonic() - started:.0f} s", flush=True)
    if has_membership:
        pairs = [a - b for a, b in zip(outcome.sums[::2], outcome.sums[1::2], strict=False)]
        found = membership(study.server.config, study.server.files, victim, model, pairs)
        print("    AUC by pairs: " + ", ".join(f"{k}: {auc:.3f}" for k, auc in found.items()), flush=True)


def _print_point(name: str, target: Target, outcome: Outcome, s: float | None) -> None:
    """Print by pairs what the sets tell (and what is computed of it), and what all sums tell at all."""
    count, known = len(outcome.sums), Known(outcome.sums)
    pairs = outcome.pairs(target.name, count)
    by_sets, computed = known.error_by_sets(target, outcome.sets), "     " if s is None else f"{formula(pairs, s):.3f}"
    line = f"{pairs:5.1f} pairs: by sets {by_sets:.3f} ({computed}), own error {known.error(target):.3f}"
    print(f"{name:15} {target.name} {count:3} sums, {line}", flush=True)


def print_refused(study: Study, run_ids: int) -> None:
    """Say what is refused at once: other runs, and a clip that the plan does not have."""
    server = study.server
    unknown = [_refusal(server, server.config, f"other-{i}") for i in range(run_ids)]
    print(f"another run id, not approved: {sum(unknown)} of {len(unknown)} refused")
    aggregations = [{"clip_l2": clip} for clip in np.geomspace(0.05, 20, 20).tolist()]
    configs = [
        server.config.model_copy(update={"aggregation": server.config.aggregation.model_copy(update=changed)})
        for changed in aggregations
    ]
    clips = [_refusal(server, config, server.plan.run_id) for config in configs]
    print(f"another clip_l2: {sum(clips)} of {len(clips)} refused")


def _refusal(server: HostileServer, config: RunConfig, run_id: str) -> bool:
    request = server.request(np.zeros(server.layout.size, np.float32))
    asked = replace(request, run_id=run_id, client_plan=config.client_plan.to_json())
    try:
        server.train(asked)
    except Refused:
        return True
    return False


def _exposed(study: Study) -> dict[str, float]:
    names = study.server.names
    draws = [study.updates(name, study.model) for name in names]
    targets = [Target.of(name, some) for name, some in zip(names, draws, strict=True)]
    return {name: exposure(targets, draws, i) for i, name in enumerate(names)}


def _initial(config: RunConfig) -> Vector:
    return MODELS["untrained"](config, np.zeros(0, np.float32))(0).model


def _drawn(server: HostileServer, name: str, model: Vector, number: int) -> Vector:
    """Return what a node would send in an exchange of a run that there is not."""
    return server.sent(name, server.request_of(server.config, model, run_id="shadow", exchange=number))


if __name__ == "__main__":
    main()
