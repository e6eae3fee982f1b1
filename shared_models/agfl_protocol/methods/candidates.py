"""The losses of models that are broadcast beside the one that is trained, as sums over owners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agfl_models.bounded import Examples
from agfl_models.errors import ImplausibleSum
from agfl_protocol.methods.method import Local, Method, MethodConfig, Round, State
from agfl_protocol.update import Total, Update

PREDICTIONS, _LOSS = "candidates/predictions", "candidates/loss_"
MAX_LOSS = 1e3  # a prediction; a model that is worse, or says NaN, counts as this
LOSSES, COUNT = "losses", "count"


class CandidatesConfig(MethodConfig):
    """num_models: that some rounds broadcast; max_examples: on which an owner evaluates each."""

    type: Literal["candidates"]
    num_models: Annotated[int, Field(ge=2, le=8)]
    max_examples: Examples

    @property
    def max_models(self) -> int:
        """All of them."""
        return self.num_models

    @property
    def max_drawn(self) -> int:
        """All models see the same examples."""
        return self.max_examples


@dataclass(frozen=True)
class Candidates(Method):
    """The losses of the models that `auto` broadcasts beside the one that is trained.

    State of a client: `losses`: of each model, summed over `count` predictions of its own.
    """

    name = "candidates"
    config = CandidatesConfig
    num_models: int
    max_examples: int
    max_predictions: int

    @classmethod
    def of(cls, round_: Round) -> Candidates | None:
        """Where a round broadcasts several models."""
        config = round_.plan.method(CandidatesConfig)
        if round_.num_models == 1 or config is None:
            return None
        max_examples = config.max_examples
        return Candidates(round_.num_models, max_examples, max_examples * round_.plan.task.max_predictions)

    @property
    def sums(self) -> tuple[str, ...]:
        """A loss of each model, and the predictions that all were measured on."""
        return names(self.num_models)

    @property
    def bounds(self) -> Mapping[str, float]:
        """The examples of one owner."""
        return {PREDICTIONS: float(self.max_predictions)}

    def observe(self, local: Local) -> State:
        """The losses, of all models on the same examples."""
        found = [local.loss(model, self.max_examples, "candidates") for model in local.models]
        return {LOSSES: np.array([loss for loss, _ in found]), COUNT: np.array([found[0][1]])}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Add the losses."""
        own = sums(state[LOSSES].tolist(), int(state[COUNT][0]))
        return replace(update, metrics={**update.metrics, **own})

    def check(self, total: Total) -> None:
        """A loss a prediction is bounded."""
        most = MAX_LOSS * total.metrics[PREDICTIONS]
        # Each client rounds once.
        worst = max(value for name, value in total.metrics.items() if is_loss(name)) - total.count
        if worst > most:
            raise ImplausibleSum("AGFL-ROUND-002", f"candidates: losses must be at most {most:g}, got {worst:g}")


def names(num_models: int) -> tuple[str, ...]:
    """Return the names of the sums that a round with `num_models` models has; none where there is one alone."""
    return (*(_name(i) for i in range(num_models)), PREDICTIONS) if num_models > 1 else ()


def sums(losses: Sequence[float], num_predictions: int) -> dict[str, float]:
    """Return what one owner adds: the summed loss of each model over the same predictions."""
    known = {_name(i): bounded(loss, num_predictions) for i, loss in enumerate(losses)}
    return known | {PREDICTIONS: float(num_predictions)}


def bounded(loss: float, num_predictions: int) -> float:
    """Return a summed loss within what the sum has room for."""
    most = MAX_LOSS * num_predictions
    return min(loss, most) if math.isfinite(loss) else most


def candidate_losses(metrics: Mapping[str, float], num_models: int) -> list[float]:
    """Return the mean loss of each model a prediction; empty where none was evaluated."""
    predictions = metrics.get(PREDICTIONS, 0.0)
    return [metrics[_name(i)] / predictions for i in range(num_models)] if predictions else []


def is_loss(name: str) -> bool:
    """Whether a sum is the loss of one model."""
    return name.startswith(_LOSS)


def _name(number: int) -> str:
    return f"{_LOSS}{number}"
