"""What one lying owner does to a model: the loss of a run in which one of n lies, beside that of the honest run.

    python simulations/benchmarks/hostile/poisoning.py --owners 5 12      # about 15 minutes on two processors
    python simulations/benchmarks/hostile/poisoning.py --owners 12 --set aggregation.max_colluders=1  # 3 groups: 7 min
    python simulations/benchmarks/hostile/poisoning.py --smoke            # seconds: few and short rounds, two attacks

Each run is the shipped Shakespeare run made small, in secure sums: the server sees no vector. The liar is in every
round. Printed are the losses on the owners' validation text, nats a byte, and what became of the run.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from agfl_client.node import Node
from agfl_models.errors import AgflError
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.method import NO_STATES, State, States
from agfl_protocol.plans.groups import groups_of
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.update import Update
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.partition import owners_of

CONFIG = Path(__file__).parents[2] / "agfl_sim" / "configs" / "language_modeling.yaml"
SMALL = ("task.sequence_length=32", "evaluation.every=1", "evaluation.max_examples=64", "model.dim=32")
SMOKE = (
    "training.local_steps=1",
    "evaluation.max_examples=4",
    "model={vocab_size: 259, dim: 16, layers: [{type: rnn}, {type: ff}]}",
)
HONEST = "none"
Encode = Callable[[UpdateCodec, Update, np.random.Generator, States], Lanes]
_encode = UpdateCodec.encode
_told = threading.local()


@dataclass(frozen=True)
class _Scaled(Clipping):
    """Multiplies where it should clip, and says that it clipped as it should."""

    factor: float = 1.0

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Client half."""
        return replace(super().encode(update, state, rng), gain=update.gain * self.factor)


def scaled(codec: UpdateCodec, update: Update, rng: np.random.Generator, states: States, factor: float) -> Lanes:
    """Send a multiple of the update, as far as the fields let it through."""
    methods = (
        _Scaled(method.clip_l2, method.is_learned, factor) if isinstance(method, Clipping) else method
        for method in codec.methods
    )
    return _encode(replace(codec, methods=tuple(methods)), update, rng, states)


def full(codec: UpdateCodec, update: Update, rng: np.random.Generator, states: States) -> Lanes:
    """Send ones only, but for the header."""
    lanes = _encode(codec, update, rng, states)
    lanes[codec.quantization.header.size :] = 2**64 - 1
    return lanes


def flipped(codec: UpdateCodec, update: Update, rng: np.random.Generator, states: States) -> Lanes:
    """Send the opposite, within all rules."""
    return _encode(codec, replace(update, delta=-update.delta), rng, states)


def replaced(
    codec: UpdateCodec, update: Update, rng: np.random.Generator, states: States, factor: float = -1.0
) -> Lanes:
    """Leave the own range, but not that of the sum: the mean is then what the liar wants, up to the bound.

    The strongest lie that passes the checks of the sum: `factor` times the bound, in the place of all n owners.
    """
    if not update.delta.size:  # nothing was trained
        return _encode(codec, update, rng, states)
    honest = codec.quantization
    plan, n = replace(honest.plan, max_cohort=1), getattr(_told, "in_sum", honest.plan.max_cohort)
    wide = replace(honest, plan=plan, clip_l2=honest.clip_l2 * plan.levels / honest.plan.levels)  # steps as long
    lanes = scaled(replace(codec, quantization=wide), update, rng, states, factor * n * honest.clip_l2 / update.norm)
    bits = 64 // plan.fields_per_lane
    fields = sum(2 ** (bits * j) for j in range(plan.fields_per_lane))
    lanes[honest.header.size :] -= np.uint64((plan.levels - honest.plan.levels) // 2 * fields % 2**64)
    return lanes


ATTACKS: Mapping[str, Encode] = {
    "scaled by -1e6": lambda codec, update, rng, states: scaled(codec, update, rng, states, -1e6),
    "all fields full": full,
    "sign flipped": flipped,
    "twice the opposite": lambda codec, update, rng, states: scaled(codec, update, rng, states, -2.0),
    "mean replaced": replaced,
}


@contextmanager
def liars() -> Iterator[None]:
    """Let nodes encode as their attack says, in the second of the two halves in which they do."""
    halves = UpdateCodec.rotate, UpdateCodec.write

    def rotate(self: UpdateCodec, update: Update, rng: np.random.Generator, states: States = NO_STATES) -> Any:
        attack: Encode | None = getattr(_told, "attack", None)
        return halves[0](self, update, rng, states) if attack is None else (attack, update, states)

    def write(self: UpdateCodec, update: Any, rng: np.random.Generator) -> Lanes:
        if not isinstance(update, tuple):
            return halves[1](self, update, rng)
        _told.attack, (attack, own, states) = None, update  # an attack encodes, too
        try:
            lanes: Lanes = attack(self, own, rng, states)
            return lanes
        finally:
            _told.attack = attack

    UpdateCodec.rotate, UpdateCodec.write = rotate, write  # type: ignore[method-assign]
    try:
        yield
    finally:
        UpdateCodec.rotate, UpdateCodec.write = halves  # type: ignore[method-assign]


class LyingNode(Node):
    """A node whose owner lies; in_sum: how many there are in its sums."""

    attack: Encode
    in_sum: int

    def handle_round(self, request: RoundRequest) -> RecordDict:
        """Let the codec know who encodes."""
        _told.attack, _told.in_sum = self.attack, self.in_sum
        try:
            return super().handle_round(request)
        finally:
            _told.attack = None


class Engine(InlineEngine):
    """One process, of whose owners the last lies."""

    def __init__(self, config: RunConfig, owners: Sequence[Path], attack: str) -> None:
        super().__init__(config, owners)
        self._attack = attack

    def _nodes(self, folder: Path) -> Mapping[int, Node]:
        nodes = super()._nodes(folder)
        if self._attack != HONEST:
            node = list(nodes.values())[-1]
            node.__class__ = LyingNode
            node.attack = ATTACKS[self._attack]  # type: ignore[attr-defined]
            node.in_sum = _in_sum(self._config, [node.name for node in nodes.values()])  # type: ignore[attr-defined]
        return nodes


def _in_sum(config: RunConfig, names: Sequence[str]) -> int:
    """Return over how many owners the sums are that the last of them is in."""
    aggregation = config.aggregation
    if aggregation.group_rule == "mean":
        return len(names)
    least = Parameters.of(len(names), aggregation.max_colluders, aggregation.min_cohort).min_cohort
    return next(len(group) for group in groups_of(names, least) if names[-1] in group)


class _Counting(Observer):
    """Counts what the run says of lies; everything else goes on to `inner`."""

    def __init__(self, inner: Observer) -> None:
        self.inner, self.unused, self.back = inner, 0, 0

    def implausible(self, round_number: int, reason: str) -> None:
        self.unused += 1
        self.inner.implausible(round_number, reason)

    def rolled_back(self, round_number: int, to_round: int, loss: float | None) -> None:
        self.back += 1
        self.inner.rolled_back(round_number, to_round, loss)


@dataclass(frozen=True)
class Outcome:
    """losses: on validation text, of the untrained model first; unused, back: sums that were not used, rollbacks."""

    losses: list[float]
    unused: int
    back: int
    end: str

    @property
    def first(self) -> float:
        """Of the untrained model."""
        return self.losses[0]

    @property
    def final(self) -> float:
        """Of the model that the run leaves."""
        return self.losses[-1]


def run(
    config: RunConfig, attack: str, owners: Sequence[Path], folder: Path, observer: Observer | None = None
) -> Outcome:
    """Run the federation, in whose every round the last owner lies."""
    counting, end = _Counting(observer or Observer()), ""
    try:
        Engine(config, owners, attack).run(folder, resume=False, observer=counting)
    except AgflError as error:
        end = str(error)
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval/loss"] for row in rows if row["eval/loss"] is not None]
    # Where no sum was ever used the model is the untrained one, which guesses.
    return Outcome(losses or [math.log(config.tokenizer.vocab_size or 1)], counting.unused, counting.back, end)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, nargs="+", default=[5, 12])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--attacks", nargs="+", default=[HONEST, *ATTACKS])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    prepare_flower()
    owners, rounds, attacks, more = options.owners, options.rounds, options.attacks, options.set
    if options.smoke:
        owners, rounds, attacks, more = [5], 2, [HONEST, "sign flipped"], SMOKE
    print(f"{'owners':>6}  {'attack':<20} {'final':>8} {'worst':>8} {'unused':>6} {'back':>4}  end")
    for n in owners:
        config = load_run_config(CONFIG, (*SMALL, f"num_rounds={rounds}", f"data.num_owners={n}", *more))
        for attack in attacks:
            with tempfile.TemporaryDirectory() as name, liars():
                files = owners_of(config, Path(name) / "owners").write()
                found = run(config, attack, files, Path(name) / "run")
            numbers = f"{found.final:>8.3f} {max(found.losses):>8.3f} {found.unused:>6} {found.back:>4}"
            print(f"{n:>6}  {attack:<20} {numbers}  {found.end or 'all rounds'}", flush=True)


if __name__ == "__main__":
    main()
