"""The race of a search: candidates take turns, rung after rung the better ones go on, and the last one is chosen.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, Figure 1), but that the configured model stays to the
last rung: what learns faster at first has yet to show that it ends better. The race is a deterministic function of what
is measured, so an interrupted one goes on by being run again over what was measured before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from agfl_models.errors import RoundError
from agfl_protocol.config.search_config import SearchConfig
from agfl_server.search.slate import CONFIGURED, Candidate, Slate


@dataclass(frozen=True)
class Measured:
    """The loss on the owners' validation text after `rounds` rounds in all; None where it died, and of what."""

    rounds: int
    loss: float | None
    reason: str = ""


@dataclass(frozen=True)
class Runner:
    """A candidate in the race; fate: why it went no further, empty while it runs."""

    candidate: Candidate
    measured: tuple[Measured, ...] = ()
    fate: str = ""

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    @property
    def loss(self) -> float:
        """The last one; infinite where it died."""
        last = self.measured[-1].loss
        return math.inf if last is None else last


@dataclass(frozen=True)
class Race:
    """Runners in the order of the slate; rungs: rounds that each adds."""

    config: SearchConfig
    rungs: tuple[int, ...]
    slate: Slate
    runners: tuple[Runner, ...]

    @property
    def alive(self) -> tuple[Runner, ...]:
        """Who runs."""
        return tuple(runner for runner in self.runners if not runner.fate)

    @property
    def candidate_rounds(self) -> int:
        """Rounds that were trained, over all candidates."""
        return sum(runner.measured[-1].rounds for runner in self.runners if runner.measured)

    @property
    def exhaustive_rounds(self) -> int:
        """What it would have taken to train all of them to the end."""
        return len(self.runners) * sum(self.rungs)

    def with_runner(self, runner: Runner) -> Race:
        """Return the race with a runner as it is now."""
        return replace(self, runners=tuple(runner if one.name == runner.name else one for one in self.runners))

    def score(self, runner: Runner) -> float:
        """Return the loss, and what the candidate's FLOPs cost beside those of the configured model."""
        ratio = runner.candidate.flops_per_token / self.slate.reference_flops
        return runner.loss + self.config.cost_weight * math.log2(ratio)

    def ranked(self) -> list[Runner]:
        """Return who runs, the best first; those within `tie` of the best one that is left rank by cost."""
        left = sorted(self.alive, key=self.score)  # stable, so the order of the slate is the last word
        ranked: list[Runner] = []
        while left:
            best = self.score(left[0])
            tied = [runner for runner in left if self.score(runner) <= best + self.config.tie * abs(best)]
            ranked += sorted(tied, key=lambda runner: runner.candidate.flops_per_token)
            left = [runner for runner in left if runner not in tied]
        return ranked


Measure = Callable[[Candidate, int], Measured]
Follow = Callable[[Race], None]


def run_race(config: SearchConfig, rungs: tuple[int, ...], slate: Slate, measure: Measure, follow: Follow) -> Race:
    """Run the race to its end; one runner is alive in what is returned.

    measure: trains a candidate to so many rounds in all and evaluates it. follow: is shown the race after each step.

    Raises:
        RoundError: no candidate has a finite loss.
    """
    race = Race(config, rungs, slate, tuple(Runner(candidate) for candidate in slate.candidates))
    follow(race)
    for rung, rounds in enumerate(accumulate(rungs), start=1):
        for runner in race.alive:
            race = _measured(race, runner, measure(runner.candidate, rounds), rung)
            follow(race)
        started = sum(len(runner.measured) == rung for runner in race.runners)
        race = _decided(race, rung, max(1, math.floor(config.keep * started)))
        follow(race)
        if len(race.alive) == 1:
            break
    return race


def _measured(race: Race, runner: Runner, measured: Measured, rung: int) -> Race:
    fate = f"died in rung {rung}: {measured.reason}" if measured.loss is None else ""
    return race.with_runner(replace(runner, measured=(*runner.measured, measured), fate=fate))


def _decided(race: Race, rung: int, share: int) -> Race:
    """Return the race with those out who do not go on: with the best `share`, or after the last rung the best one."""
    ranked = race.ranked()
    if not ranked:
        raise RoundError("AGFL-ROUND-022", f"search: a candidate must have a finite loss after rung {rung}, none has")
    kept = _kept(ranked, share) if rung < len(race.rungs) else ranked[:1]
    for place, runner in enumerate(ranked, start=1):
        if runner not in kept:
            fate = f"left after rung {rung}: {place}. of {len(ranked)}, {_why(race, runner, ranked)}"
            race = race.with_runner(replace(runner, fate=fate))
    return race


def _kept(ranked: Sequence[Runner], share: int) -> Sequence[Runner]:
    """Return the best `share`; the configured model is one of them, whatever its place, and the best one another."""
    own = [runner for runner in ranked[share:] if runner.name == CONFIGURED]
    return [*ranked[: max(1, share - len(own))], *own]


def _why(race: Race, runner: Runner, ranked: Sequence[Runner]) -> str:
    best = min(ranked, key=race.score)
    behind = race.score(runner) - race.score(best)
    return f"its score {race.score(runner):.4f} is {behind:.4f} above that of {best.name}"
