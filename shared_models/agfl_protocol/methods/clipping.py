"""Clipping: no client moves the model by more than a public L2 bound; where the run leaves it open, it is learned.

It is learned on a grid, powers of the square root of 2, as in Andrew et al. 2021, arXiv:1905.03871: from how many
clients exceed the bound, and how many the next lower ones, to the least bound that at most half of them exceed. It goes
up by one step a round at most, and down by two, since a sum does not tell who said what: a liar within its range has
one vote, one that leaves it decides, but not how far it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agfl_models.errors import ImplausibleSum
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.methods.method import ArraySpec, Method, Round, Specs, State, States
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.plans.sum_kind import may_train_exactly
from agfl_protocol.update import Mean, Total, Update, Vector

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

CLIPPED = "clip/clipped"
ABOVE = ("clip/above_1", "clip/above_2")  # exceed a bound that is one step lower, two
FRACTION, L2 = "clip/fraction", "clip/l2"
STEP, _HIGHEST = "step", "highest"
MAX_STEP = 80  # of the grid, [2^-20, 2^20]
START = 46  # 8: text models' first updates have norms of 0.5 to 8
PINNED_L2 = 100.0
_SHRUNK = 2  # steps of the grid: half the bound


def varies(plan: ClientPlan) -> bool:
    """Whether the bound moves from round to round: it is left open, and sums are of text drawn afresh.

    Sums over all of an owner's text differ exactly where the bound does, and then who is clipped is told (SECURITY.md).
    """
    return plan.aggregation.clip_l2 == "auto" and not may_train_exactly(plan)


def bound(plan: ClientPlan, step: int) -> float:
    """Return the bound of a round; step: of the grid, where it varies."""
    if varies(plan):
        return float(2.0 ** ((step - MAX_STEP // 2) / 2))
    stated = plan.aggregation.clip_l2
    return PINNED_L2 if stated == "auto" else stated


def next_step(step: int, total: Total, num_honest: int) -> int:
    """Return the step of the next round; num_honest: the clients in the sum that had something to clip."""
    if 2 * round(total.metrics[CLIPPED]) > num_honest:
        return min(step + 1, MAX_STEP)
    lower = sum(2 * round(total.metrics[name]) <= num_honest for name in ABOVE)
    return max(step - lower, 1)


@dataclass(frozen=True)
class Clipping(Method):
    """Scale a delta to L2 norm <= `clip_l2`; the sum carries how many exceeded it, and the next lower ones.

    Source: the clipping of DP-FedAvg, McMahan et al. 2018, arXiv:1710.06963, Algorithm 1 (flat clipping).
    State, where the bound is learned: `step`: of the grid; `highest`: the most that it may become in the next round,
    which is low after a rollback and grows by a step a round.
    """

    name = "clipping"
    clip_l2: float
    is_learned: bool = False

    @classmethod
    def of(cls, round_: Round) -> Clipping:
        """Always."""
        return Clipping(bound(round_.plan, step_of(round_.arrays)), varies(round_.plan))

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """The step of the grid, where the bound is learned."""
        return {STEP: ArraySpec("int64", (1,), 1, MAX_STEP)} if train and varies(plan) else {}

    @staticmethod
    def refuse_exact(plan: ClientPlan, arrays: State) -> None:
        """Which owners a bound clips is told by two bounds."""
        if plan.aggregation.type == "secure" and varies(plan):
            rule = "must be a number in an exact sum, where a bound that moves picks owners"
            raise PlanViolation("AGFL-PLAN-008", f"aggregation.clip_l2: {rule}")

    @property
    def sums(self) -> tuple[str, ...]:
        """How many exceed the bound, and the next lower ones."""
        return (CLIPPED, *ABOVE)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Each owner is one."""
        return dict.fromkeys(self.sums, 1.0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The bound, and the share of clients that exceed it."""
        return L2, FRACTION

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Lower the gain; add the metrics `clip/clipped`, `clip/above_1` and `clip/above_2` (0 or 1)."""
        above = {name: float(update.norm > self.clip_l2 / 2 ** (k / 2)) for k, name in enumerate((CLIPPED, *ABOVE))}
        metrics = {**update.metrics, **above}
        if update.norm <= self.clip_l2:
            return replace(update, metrics=metrics)
        # A little below the bound, so that rounding cannot step over it.
        return replace(update, gain=update.gain * (self.clip_l2 / update.norm) * (1 - 1e-5), metrics=metrics)

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Report the share of clients that were clipped as `clip/fraction`; move the bound."""
        metrics = dict(total.metrics)
        metrics[FRACTION] = metrics.pop(CLIPPED) / total.count
        mean = replace(total, metrics=metrics)
        if not state:
            return mean, state
        highest = int(state[_HIGHEST][0])
        step = next_step(int(state[STEP][0]), total, total.count - round(total.metrics[DIVERGED]))
        return mean, _state(min(step, highest), min(highest + 1, MAX_STEP))

    def check(self, total: Total) -> None:
        """Who exceeds a bound exceeds each lower one."""
        votes = [total.metrics[name] for name in self.sums]
        if votes != sorted(votes) or votes[-1] > total.count:
            raise ImplausibleSum(
                "AGFL-ROUND-003", f"clip: lower bounds must be exceeded by more, of {total.count} clients, got {votes}"
            )

    def initial_state(self, model: Vector) -> State:
        """Where the bound is learned, it begins high."""
        return _state(START, MAX_STEP) if self.is_learned else {}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """The bound."""
        return {STEP: state[STEP]} if train and state else {}

    def restarted(self, state: State) -> State:
        """Halve the bound; it comes back by a step a round that nothing refutes."""
        if not state:
            return state
        step = max(1, int(state[STEP][0]) - _SHRUNK)
        return _state(step, step)

    def row(self, mean: Mean) -> Mapping[str, float]:
        """The bound, and how many exceed it."""
        return {L2: self.clip_l2, FRACTION: mean.metrics[FRACTION]}


def step_of(states: States) -> int:
    """Return the step of the grid in the states of all methods; 0 where the bound stays."""
    state = states.get(Clipping.name)
    return int(state[STEP][0]) if state else 0


def _state(step: int, highest: int) -> State:
    return {STEP: np.full(1, step, np.int64), _HIGHEST: np.full(1, highest, np.int64)}
