"""How a run gets on with absent owners: the server's and the owners' own rules over many rounds, without any training.

    python simulations/benchmarks/absent_owners/availability.py [--rounds 1000] [--smoke]

Of each owner its real ledger, plan and policy decide; of the server its real attempts. Each time that it looks who is
there, 5 % are absent: others each time, or in outages of 20 looks. In each trip 0.2 % of the replies are lost.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from paper_owners import Lost, OneLane, PaperOwner, PaperSum

from agfl_client.policy import Policy
from agfl_models.errors import RoundError
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.sum_kind import MAX_SAMPLED_EXAMPLES, Kind, kind_of
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_server.rounds.attempts import Request, RunContext, sum_in_attempts
from agfl_server.rounds.journal import Entry, Journal
from agfl_server.rounds.observer import Observer
from agfl_server.transport import connected_nodes
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_sim.engines.grid import InProcessGrid

CONFIG = Path(__file__).parents[2] / "agfl_sim/configs/language_modeling.yaml"
ABSENT, LOST, OUTAGE = 0.05, 0.002, 20
EPOCHS = ("training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=2000")


@dataclass(frozen=True)
class Case:
    """A federation: n owners, of whom `cohort` are drawn (None for all) and `colluders` may collude (None: default)."""

    kind: Kind
    owners: int
    cohort: int | None = None
    colluders: int | None = None

    @property
    def title(self) -> str:
        """What a person reads."""
        rule = "tolerant" if self.kind is Kind.SAMPLED else "strict"
        size = f"{self.owners}" if self.cohort is None else f"{self.cohort} of {self.owners}"
        return f"{rule}, {size}" + ("" if self.colluders is None else f", c = {self.colluders}")


CASES = (
    Case(Kind.SAMPLED, 5),
    Case(Kind.SAMPLED, 24),
    Case(Kind.SAMPLED, 100, 30, 10),
    Case(Kind.EXACT, 5),
    Case(Kind.EXACT, 24),
    Case(Kind.EXACT, 24, None, 3),
)


@dataclass
class Weather(ConnectedNodes):
    """Who is there; each look is another moment."""

    owners: tuple[str, ...] = ()
    in_outages: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    looks: int = 0
    _until: dict[str, int] = field(default_factory=dict)

    def connected(self) -> dict[str, int]:
        """Return who is there now."""
        self.looks += 1
        length = OUTAGE if self.in_outages else 1
        chance = ABSENT / length / (1 - ABSENT + ABSENT / length)  # of an outage to begin, so that 5 % are absent
        for name in self.owners:
            if self._until.get(name, 0) <= self.looks and self.rng.random() < chance:
                self._until[name] = self.looks + length
        return {n: i for i, n in enumerate(self.owners) if self._until.get(n, 0) <= self.looks}


@dataclass
class Tally:
    """What the rounds of one case came to."""

    last: int = 0
    sizes: list[int] = field(default_factory=list)
    evaluations: int = 0
    tried: int = 0
    stops: list[str] = field(default_factory=list)


def run(case: Case, rounds: int, in_outages: bool, folder: Path) -> str:
    """Run a case and return its line."""
    overrides = [f"num_rounds={rounds}", *(EPOCHS if case.kind is Kind.EXACT else ())]
    if case.cohort is not None:
        overrides.append(f"aggregation.cohort_size={case.cohort}")
    config = load_run_config(CONFIG, overrides)
    names = tuple(f"owner-{i:03}" for i in range(case.owners))
    policy = Policy(max_colluders=case.colluders)
    parameters = policy.parameters(case.owners)
    plan = Plan.of(config.client_plan, "run", names, parameters.min_cohort)
    rng = np.random.default_rng(1)
    owners = {name: PaperOwner.of(name, plan, policy, parameters, folder / name) for name in names}
    lost = Lost(rng, LOST)
    aggregator = PaperSum(owners, parameters, lost)
    grid, journal = InProcessGrid({}, 1), Journal(folder)
    journal.begin("run")
    weather = Weather(grid, Observer(), owners=names, in_outages=in_outages, rng=rng)
    context = RunContext(
        config, grid, weather, aggregator, Observer(), parameters.min_cohort, journal, plan, num_owners=len(names)
    )
    tally = _rounds(context, config, rounds)
    first = next(iter(owners.values())).ledger
    pairs = [first.pairs("run", name).k for name in names]
    waits = weather.looks - aggregator.exchanges - tally.tried
    weather_name = "outages" if in_outages else "anew"
    return (
        f"{case.title:24} {weather_name:8} exchanges {aggregator.exchanges}, spent {aggregator.spent}, waits {waits}, "
        f"owners a round {statistics.mean(tally.sizes):.1f}, pairs median {statistics.median(pairs):.0f} most "
        f"{max(pairs):.0f}, full evaluations {tally.evaluations} of {tally.tried}, stops {len(tally.stops)}, "
        f"refusals {aggregator.refusals.total()}"
        + "".join(f"\n    {line}: {count}" for line, count in aggregator.refusals.items())
    )


def _rounds(context: RunContext, config: RunConfig, rounds: int) -> Tally:
    tally = Tally()
    number = 1
    while number <= rounds:
        kind = kind_of(
            config.client_plan,
            train=True,
            evaluate=False,
            full=False,
            counts=False,
            max_sampled_examples=MAX_SAMPLED_EXAMPLES,
        )
        try:
            size = _sum(context, Request(number, tally.last, kind), train=True)
        except RoundError as error:  # the run stops, and whoever runs it has it go on with the same round
            tally.stops.append(str(error))
            if len(tally.stops) > rounds // 10:
                raise
            continue
        tally.sizes.append(size)
        tally.last = context.journal.current(0).exchange - 1
        number += 1
        if (number - 1) % max(rounds // 10, 1) == 0:
            tally.tried += 1
            if context.has_whole_group():
                try:
                    _sum(context, Request(number, tally.last, Kind.EXACT, all_owners=True), train=False)
                    tally.evaluations += 1
                except RoundError:
                    pass
                tally.last = context.journal.current(0).exchange - 1
    return tally


def _sum(context: RunContext, wanted: Request, *, train: bool) -> int:
    """Return how many owners are in the sum."""
    config, plan = context.config, context.plan

    def broadcast(entry: Entry, room: int) -> tuple[RoundRequest, OneLane]:
        quantizer = QuantizationPlan(2, room)
        request = RoundRequest(
            run_id=plan.run_id,
            round=wanted.round,
            exchange=entry.exchange,
            plan_hash=plan.hash,
            client_plan=config.client_plan.to_json(),
            evaluate=not train,
            train=train,
            model=np.zeros(1, np.float32),
            plan=quantizer,
            full=not train,
        )
        return request, OneLane()

    _, _, found = sum_in_attempts(context, wanted, broadcast, lambda _, lanes: lambda: lanes)
    context.journal.close(wanted.round)  # as a checkpoint does
    return len(found.survivors)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="20 rounds of the small federations")
    args = parser.parse_args()
    connected_nodes._POLL_S = 0.0
    cases: Mapping[bool, tuple[Case, ...]] = {False: CASES, True: tuple(c for c in CASES if c.owners == 5)}
    for case in cases[args.smoke]:
        for in_outages in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                print(run(case, 20 if args.smoke else args.rounds, in_outages, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
