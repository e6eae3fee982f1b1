"""A method of your own, in one file: owners send the largest tenth of their update, and say how much of it that is.

Nothing of the package is edited: the method registers itself, and the run names it under `methods`. It works under
secure sums, since what it reports is one more number in the sum. Run it:

    python simulations/examples/own_method.py runs/sparse
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

import agfl
from agfl_protocol.methods.method import Method, MethodConfig, Round, State
from agfl_protocol.methods.registry import register
from agfl_protocol.update import Mean, Update, square_sum

KEPT = "sparse/kept"


class SparseConfig(MethodConfig):
    """share: of the elements of an update, those that are sent."""

    type: Literal["sparse"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    is_chosen = True


@register
@dataclass(frozen=True)
class Sparse(Method):
    """Top-k sparsification (Aji and Heafield 2017, arXiv:1704.05021), without the memory of what was left out."""

    name = "sparse"
    config = SparseConfig
    share: float
    sums = (KEPT,)
    metrics = (KEPT,)

    @classmethod
    def of(cls, round_: Round) -> Sparse | None:
        """Where the run names it."""
        config = round_.plan.method(SparseConfig)
        return None if config is None else Sparse(config.share)

    @property
    def bounds(self) -> Mapping[str, float]:
        """A share is one at most."""
        return {KEPT: 1.0}

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """On a client: set all but the largest elements to zero."""
        size = np.abs(update.delta)
        threshold = np.quantile(size, 1 - self.share)
        sparse = np.where(size >= threshold, update.delta, np.float32(0))
        whole = square_sum(update.delta)
        kept = min(square_sum(sparse) / whole, 1.0) if whole > 0 else 0.0
        return replace(update, delta=sparse, metrics={**update.metrics, KEPT: kept})

    def row(self, mean: Mean) -> Mapping[str, float]:
        """On the server: the mean over owners, for metrics.jsonl and the report."""
        return {KEPT: mean.metrics[KEPT] / mean.count}


RUN = {
    "num_rounds": 3,
    "task": {"type": "language_modeling", "sequence_length": 32},
    "model": {"vocab_size": 259, "dim": 32, "layers": [{"type": "rnn", "cell": "mingru"}, {"type": "ff"}]},
    "training": {"optimizer": {"type": "sgd", "lr": 0.5}, "batch_size": 8, "local_steps": 4},
    "aggregation": {"server_optimizer": {"type": "fedavg"}, "max_colluders": 1},
    "evaluation": {"every": 3, "max_examples": 16},
    "data": {"num_owners": 5},
}


def run(folder: str) -> agfl.History:
    """Train with it and without, and return the run with it."""
    plain = agfl.simulate(RUN, out=f"{folder}/plain", progress=False)
    sparse = agfl.simulate({**RUN, "methods": [{"type": "sparse"}]}, out=f"{folder}/sparse", progress=False)
    print(f"the largest tenth of an update holds {sparse.rows[-1][KEPT]:.0%} of its square")
    print(f"loss {plain.rows[-1]['eval/loss']:.3f} with all of it, {sparse.rows[-1]['eval/loss']:.3f} with that tenth")
    return sparse


if __name__ == "__main__":
    run(sys.argv[1])
