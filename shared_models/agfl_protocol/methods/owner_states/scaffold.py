"""SCAFFOLD: control variates at each owner take what is its own out of each gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agfl_models.errors import BrokenRule
from agfl_protocol.config.training_config import SGDConfig
from agfl_protocol.methods.method import ArraySpec, Gradient, MethodConfig, Round, Specs, State
from agfl_protocol.methods.owner_states.owner_state import OWN, OWNERS, SUM, Array, OwnerState

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

CONTROL = "control"


class ScaffoldMethodConfig(MethodConfig):
    """Has no settings of a client."""

    type: Literal["scaffold"]
    keeps_state = True


@dataclass(frozen=True)
class Scaffold(OwnerState):
    """Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II; s_i is K lr c_i, and s is K lr c.

    The local step is -lr (g - c_i + c); c_i becomes c_i - c + (x - y_i) / (K lr), where x - y_i is minus the update.
    On the server c += |S| / N * mean change of c_i.
    reach: K lr, of all clients the same, hence public. Broadcast beside what all such methods do: `control`: s, (d,).
    """

    name = "scaffold"
    config = ScaffoldMethodConfig
    reach: float

    @classmethod
    def of(cls, round_: Round) -> Scaffold | None:
        """Where the run says so."""
        training = round_.plan.training
        if round_.plan.method(ScaffoldMethodConfig) is None:
            return None
        assert training.local_steps is not None
        return Scaffold(round_.plan.aggregation.type == "secure", training.local_steps * training.optimizer.lr)

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """All must weigh alike and take the same steps."""
        if plan.method(ScaffoldMethodConfig) is None:
            return
        OwnerState.refuse_unlike(plan, "scaffold")
        refuse_unequal_steps(plan, "server_optimizer scaffold")

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """s beside what all such methods broadcast."""
        specs = OwnerState.arrays_of(plan, ScaffoldMethodConfig, train=train)
        return {**specs, CONTROL: ArraySpec("float32", (size,))} if specs else {}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """The mean of all states."""
        others = super().broadcast(state, train=train, is_retry=is_retry)
        return {**others, CONTROL: _control(state)} if train else {}

    def gradient(self, state: State) -> Gradient:
        """Add c - c_i."""
        return Gradient(shift=(state[CONTROL] - state[OWN]) / self.reach)

    def change(self, state: State, update: Array) -> Array:
        """-s - u_i."""
        control = state[CONTROL] if CONTROL in state else _control(state)
        changed: Array = -control - update
        return changed


def refuse_unequal_steps(plan: ClientPlan, needs: str) -> None:
    """Raise BrokenRule unless all owners take as many steps of plain SGD."""
    training = plan.training
    if not isinstance(training.optimizer, SGDConfig) or training.optimizer.momentum > 0:
        got = training.optimizer.model_dump_json()
        raise BrokenRule("AGFL-CONFIG-179", f"training.optimizer must be sgd without momentum with {needs}, got {got}")
    if training.schedule is not None:
        rule = f"must be left out with {needs}, whose K lr is the same in every round"
        raise BrokenRule("AGFL-CONFIG-259", f"training.schedule: {rule}, got {training.schedule.type}")
    if training.local_steps is None:
        raise BrokenRule(
            "AGFL-CONFIG-180", f"training.local_steps is required with {needs}, since all must take as many, got None"
        )


def _control(state: State) -> Array:
    control: Array = state[SUM] / int(state[OWNERS][0])
    return control
