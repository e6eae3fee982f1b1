"""The interface of a method: what it adds to an update, to a sum, to the server's state and to metrics.jsonl.

A method is one file with both halves, and one line in `registry.METHODS`. Whatever it does not override adds nothing.
Counterparts: pfl-research `Postprocessor`, TensorFlow Federated aggregation factory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agfl_models.model.rings import Rings
from agfl_protocol.update import Total, Update, Vector

if TYPE_CHECKING:
    from agfl_protocol.config.run_config import RunConfig

State: TypeAlias = Mapping[str, NDArray[Any]]
States: TypeAlias = Mapping[str, State]  # by the methods' names


@dataclass(frozen=True)
class Round:
    """What both sides know of a round, and build its methods from.

    num_models: that are broadcast; clip_step: see `clipping.bound`; rings: of an elastic model.
    """

    config: RunConfig
    num_models: int = 1
    clip_step: int = 0
    rings: Rings | None = None


class Method:
    """Both halves of a method.

    State in, state out: on the server a state is this method's part of `ServerState`; on a client it is what was
    broadcast of it, and what this owner alone knows. The codec hands either to `encode` and `decode`.
    """

    name: ClassVar[str]

    @classmethod
    def of(cls, round_: Round) -> Method | None:
        """Return the method as the round has it; None where the run does without."""
        raise NotImplementedError

    @staticmethod
    def refuse_misfit(config: RunConfig) -> None:
        """Raise ValueError where the run's configuration has settings that this method cannot go with."""

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

    def broadcast(self, state: State) -> State:
        """Return what a round that trains broadcasts of the server's state."""
        return {}

    def stepped(self, state: State, before: Vector, after: Vector) -> State:
        """Return the state after the server's step from one model (d,) to the next."""
        return state

    def restarted(self, state: State) -> State:
        """Return the state from which the run goes on from an earlier model, since what came of the last is no good."""
        return state

    def row(self, mean: Total) -> Mapping[str, float]:
        """Return what metrics.jsonl says of a round of training, given its decoded sum."""
        return {}

    def eval_row(self, sums: Mapping[str, float]) -> Mapping[str, float | None]:
        """Return what metrics.jsonl says of an evaluation."""
        return {}
