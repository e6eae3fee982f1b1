"""Owners keep state against the drift of local training, and the server the sum of the states.

The state s_i of an owner, float32 (d,), is zero at first and in the unit of an update. It corrects each gradient of a
round, and then becomes s_i + `change`(s, u_i), where u_i is what the owner sent, clipped and rounded, and s what was
broadcast beside the model. That is affine in u_i: the sum of the updates tells the server the sum of the changes. So no
second vector goes up, sum(s_i) stays what the server takes it for, to the last digits of float32, and the bound of an
update is one of the change, too. All must weigh alike.

The server's N is how many owners there are: all that were ever connected or counted, since the papers' N is whoever
may be drawn. It keeps the sum, which is exact whatever N is, and divides when it uses it: an N that is too large, or
grows, makes corrections smaller but moves no fixed point.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import BrokenRule, WireError
from agfl_protocol.methods.method import ArraySpec, Method, MethodConfig, Specs, State, Step
from agfl_protocol.update import Mean, Update, Vector

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

IS_LOST, OWN = "is_lost", "own"
LOST = "drift/lost"  # the sum that says how many owners have lost their state
SUM, OWNERS, USED, NAMES = "sum", "owners", "used", "names"
_MAX_USED, _MAX_TEXT = 2**16, 2**22
Array: TypeAlias = NDArray[np.floating[Any]]
Used: TypeAlias = tuple[int, tuple[str, ...]]  # an exchange, and who was in its sum


@dataclass(frozen=True)
class OwnerState(Method):
    """A method whose owners keep state; at most one in a run.

    Broadcast: `used`, the exchanges whose sums the model took in, ascending: only so an owner knows whether what it
    sent last counts. All owners get the same list. Of plain sums `names` says who was in each; of secure ones an owner
    goes by what it signed.
    State of a client: what was broadcast; `own` (d,); `is_lost`. State of the server: `sum` of all s_i, `owners`: N,
    and `used` and `names`: the last exchange of each owner that was used, with all who were in it.
    """

    is_secure: bool

    @abstractmethod
    def change(self, state: State, update: Array) -> Array:
        """Return by how much the state changes with an update (d,); of the mean update, the mean change."""

    @staticmethod
    def arrays_of(plan: ClientPlan, kind: type[MethodConfig], *, train: bool) -> Specs:
        """Return what every such method broadcasts."""
        if not train or plan.method(kind) is None:
            return {}
        most = 0 if plan.aggregation.type == "secure" else _MAX_TEXT
        names = ArraySpec("uint8", range(most + 1), 0, 255)
        return {USED: ArraySpec("int64", range(_MAX_USED + 1), 0, 2**31), NAMES: names}

    @staticmethod
    def refuse_arrays(plan: ClientPlan, arrays: State) -> None:
        """Exchanges ascend, and where sums are plain each has its names."""
        used_in(arrays)

    @staticmethod
    def refuse_unlike(plan: ClientPlan, name: str) -> None:
        """Raise BrokenRule where owners do not weigh alike, or another rule pulls at them or sums them up."""
        aggregation, training = plan.aggregation, plan.training
        if (aggregation.weighting, aggregation.averaging) != ("uniform", "mean"):
            rule = f"{name} needs weighting uniform and averaging mean"
            got = f"{aggregation.weighting} and {aggregation.averaging}"
            raise BrokenRule("AGFL-CONFIG-175", f"aggregation.server_optimizer: {rule}, got {got}")
        if aggregation.group_rule != "mean":
            rule = f"{name} needs group_rule mean"
            raise BrokenRule("AGFL-CONFIG-176", f"aggregation.server_optimizer: {rule}, got {aggregation.group_rule}")
        if training.proximal_mu > 0:
            rule = f"must be 0 with server_optimizer {name}"
            raise BrokenRule("AGFL-CONFIG-177", f"training.proximal_mu {rule}, got {training.proximal_mu}")
        if plan.elastic is not None:
            rule = "needs owners that keep no state"
            raise BrokenRule("AGFL-CONFIG-178", f"elastic: {rule}, got aggregation.server_optimizer {name}")

    @property
    def sums(self) -> tuple[str, ...]:
        """Owners that have lost their state. That is told also of an owner whose numbers ran away."""
        return (LOST,)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Each owner is one."""
        return {LOST: 1.0}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Say whether this owner has lost its state."""
        return replace(update, metrics={**update.metrics, LOST: float(state[IS_LOST][0])})

    def initial_state(self, model: Vector) -> State:
        """All states are zero, and nothing was used."""
        return {SUM: np.zeros_like(model), OWNERS: np.ones(1, np.int64), **as_arrays(())}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """What was used; of secure sums owners know themselves who was in one."""
        if not train:
            return {}
        return {USED: state[USED], NAMES: state[NAMES][:0] if self.is_secure else state[NAMES]}

    def stepped(self, state: State, step: Step) -> tuple[Vector, State]:
        """The sum of states after the round; zero, and nothing used, where all owners begin anew."""
        mean = step.mean
        owners = np.full(1, mean.owners, np.int64)
        if mean.metrics[LOST]:
            return step.after, {**self.initial_state(step.after), OWNERS: owners}
        change = self.change(state, mean.delta)
        return step.after, {SUM: state[SUM] + mean.count * change, OWNERS: owners, **_used_after(state, step)}

    def restarted(self, state: State) -> State:
        """All owners begin anew."""
        return self.initial_state(state[SUM])

    def remark(self, mean: Mean) -> str | None:
        """Owners that lost their state."""
        lost = round(mean.metrics[LOST])
        return f"{lost} owners have lost their state: all begin anew with none" if lost else None


def used_in(arrays: State) -> tuple[Used, ...]:
    """Return the exchanges that were used, ascending, each with its names where sums are plain; raises WireError."""
    exchanges, text = arrays[USED].tolist(), arrays[NAMES].tobytes()
    lines = text.decode("utf-8", "replace").split("\n") if text else [""] * len(exchanges)
    if any(a >= b for a, b in pairwise(exchanges)) or len(lines) != len(exchanges):
        raise WireError(
            "AGFL-WIRE-017", f"used: must be exchanges, ascending, each with its names, got {exchanges[:8]}"
        )
    return tuple((exchange, tuple(line.split())) for exchange, line in zip(exchanges, lines, strict=True))


def as_arrays(used: Sequence[Used]) -> State:
    """Return what `used_in` reads."""
    text = "\n".join(" ".join(names) for _, names in used)  # no NAME has a space in it
    return {
        USED: np.array([exchange for exchange, _ in used], np.int64),
        NAMES: np.frombuffer(text.encode(), np.uint8),
    }


def _used_after(state: State, step: Step) -> State:
    """Return the exchanges by which each owner knows whether it was used, this one among them."""
    latest = set(step.names)
    kept = {step.exchange: step.names}
    for exchange, names in reversed(used_in(state)):
        if not latest.issuperset(names):
            kept[exchange] = names
            latest |= set(names)
    return as_arrays(sorted(kept.items()))
