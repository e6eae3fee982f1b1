"""The interface of a method: what it broadcasts, asks of a client, adds to a sum, keeps at the server and reports.

A method is one file with both halves, and one line in `registry.METHODS`. Whatever it does not override adds nothing.
Counterparts: pfl-research `Postprocessor`, TensorFlow Federated aggregation factory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agfl_models.model.rings import Rings
from agfl_models.registry import Registry
from agfl_models.validation import Config
from agfl_protocol.update import Mean, Total, Update, Vector

if TYPE_CHECKING:
    from agfl_protocol.config.run_config import RunConfig
    from agfl_protocol.plans.client_plan import ClientPlan

State: TypeAlias = Mapping[str, NDArray[Any]]
States: TypeAlias = Mapping[str, State]  # by the methods' names
NO_STATES: States = MappingProxyType({})


class MethodConfig(Config):
    """What a client must know of a method, as part of the plan that its owner approves; `type` names it.

    is_chosen: whether a run names it by itself, under `methods`; others come with what `aggregation` says. keeps_state:
    whether owners keep state from round to round for it.
    """

    type: str
    is_chosen: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = False

    @property
    def max_models(self) -> int:
        """How many models a round may broadcast."""
        return 1

    @property
    def max_drawn(self) -> int:
        """How many examples an owner draws for it in a round that trains, beside those of training and evaluating."""
        return 0


METHOD_CONFIGS = Registry(MethodConfig)


@dataclass(frozen=True)
class ArraySpec:
    """What an array that a method broadcasts may be: its type, how many elements it may have, and their range.

    low, high: of integers; floating-point numbers must be finite.
    """

    dtype: str
    sizes: Sequence[int]
    low: int = 0
    high: int = 0


Specs: TypeAlias = Mapping[str, ArraySpec]


@dataclass(frozen=True)
class Round:
    """What both sides know of a round, and build its methods from.

    num_models: that are broadcast; arrays: what methods broadcast beside them; rings: of an elastic model. config: the
    server's own, which no client knows.
    """

    plan: ClientPlan
    num_models: int = 1
    arrays: States = field(default_factory=lambda: NO_STATES)
    rings: Rings | None = None
    config: RunConfig | None = None


@dataclass(frozen=True)
class Gradient:
    """How a method changes each gradient g of local training, before it is clipped: to `scale` g + `shift`.

    shift: (d,), None for zero. pull: toward the global model, mu / 2 |x - x_0|^2 beside the loss.
    """

    scale: float = 1.0
    shift: NDArray[np.floating[Any]] | None = None
    pull: float = 0.0


@dataclass(frozen=True)
class Step:
    """A step of the server. before, after: the model (d,); mean: the update that it followed from.

    exchange: in which owners were asked; names: of those in the sum, none where nobody knows.
    """

    before: Vector
    after: Vector
    mean: Mean
    exchange: int = 0
    names: tuple[str, ...] = ()


class Local(Protocol):
    """What a method's client half may ask of a node, beside its state."""

    @property
    def models(self) -> NDArray[np.float32]:
        """The models that were broadcast, (m, d)."""

    @property
    def tier(self) -> int:
        """How many rings of an elastic model this owner's device can hold."""

    @property
    def num_rings(self) -> int:
        """How many of them it trains."""

    def loss(self, model: Vector, max_examples: int, purpose: str) -> tuple[float, int]:
        """Return the loss of a model (d,) on validation examples, summed over predictions, and how many these are."""

    def losses_by_ring(self, max_examples: int, purpose: str) -> tuple[list[float], int]:
        """Return the loss of the broadcast model up to each ring that this owner trains, and the predictions of each.

        No losses where the model is not elastic.
        """


class Method:
    """Both halves of a method.

    State in, state out: on the server a state is this method's part of `ServerState`; on a client it is what was
    broadcast of it, and what this owner alone knows. The codec hands either to `encode` and `decode`.
    """

    name: ClassVar[str]
    config: ClassVar[type[MethodConfig] | None] = None

    @classmethod
    def of(cls, round_: Round) -> Method | None:
        """Return the method as the round has it; None where the run does without."""
        raise NotImplementedError

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """Raise ValueError where the run has settings that this method cannot go with."""

    @staticmethod
    def arrays(plan: ClientPlan, size: int, *, train: bool) -> Specs:
        """Return what `broadcast` sends beside the model of `size` parameters: all of it, and nothing else."""
        return {}

    @staticmethod
    def refuse_arrays(plan: ClientPlan, arrays: State) -> None:
        """Raise WireError where arrays that are as specified still make no sense."""

    @staticmethod
    def refuse_exact(plan: ClientPlan, arrays: State) -> None:
        """Raise PlanViolation where, in sums that subtract to the last bit, this method picks whom they tell of."""

    @property
    def sums(self) -> tuple[str, ...]:
        """Names of what `encode` adds to the sum of a round that trains, each >= 0."""
        return ()

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """Names of what clients add where a round evaluates."""
        return ()

    @property
    def bounds(self) -> Mapping[str, float]:
        """What one honest client's sums are at most, where that follows from the broadcast."""
        return {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `row` and `eval_row` report."""
        return ()

    def observe(self, local: Local) -> State:
        """Client half, before training: return what this method's `encode` is to know of this owner."""
        return {}

    def observe_eval(self, local: Local, max_examples: int) -> Mapping[str, float]:
        """Client half, where a round evaluates: return `eval_sums`."""
        return {}

    def gradient(self, state: State) -> Gradient | None:
        """Client half, during training: return what becomes of each gradient; None where it stays."""
        return None

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Client half: return the update as it goes on to the next method, with all of `sums` among its metrics."""
        return update

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Server half, applied to the sum over the cohort: return what it means, and the state after the round."""
        return total, state

    def check(self, total: Total) -> None:
        """Raise ImplausibleSum where no honest clients have this sum."""

    def initial_state(self, model: Vector) -> State:
        """Return the server's state before round 1, given the model (d,)."""
        return {}

    def broadcast(self, state: State, *, train: bool, is_retry: bool) -> State:
        """Return what a round broadcasts of the server's state: the arrays that `arrays` tells of.

        is_retry: an exchange of this round has failed.
        """
        return {}

    def stepped(self, state: State, step: Step) -> tuple[Vector, State]:
        """Return the model and the state after the server's step."""
        return step.after, state

    def restarted(self, state: State) -> State:
        """Return the state from which the run goes on from an earlier model, since what came of the last is no good."""
        return state

    def remark(self, mean: Mean) -> str | None:
        """Return a line for the operator about a round, where there is something to say."""
        return None

    def row(self, mean: Mean) -> Mapping[str, float]:
        """Return what metrics.jsonl says of a round of training, given its decoded sum."""
        return {}

    def eval_row(self, sums: Mapping[str, float]) -> Mapping[str, float | None]:
        """Return what metrics.jsonl says of an evaluation."""
        return {}
