"""An optimizer for elastic models: a ring that too few owners trained stays as it is, and so does its momentum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agfl_models.model.rings import Rings
from agfl_protocol.methods import elastic
from agfl_protocol.optimizers.server_optimizer import Array, OptimizerState, ServerOptimizer
from agfl_protocol.update import Mean


@dataclass(frozen=True)
class PerRing(ServerOptimizer):
    """Steps as `inner` does, in the rings that at least `min_cohort` owners trained."""

    inner: ServerOptimizer
    rings: Rings
    min_cohort: int

    def initial_state(self, model: Array) -> OptimizerState:
        """That of the inner optimizer."""
        return self.inner.initial_state(model)

    def restarted(self, model: Array, state: OptimizerState) -> OptimizerState:
        """That of the inner optimizer."""
        return self.inner.restarted(model, state)

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        stepped, after = self.inner.step(model, mean, state)
        opened = elastic.count_opened(mean.metrics, len(self.rings.widths), self.min_cohort)
        frozen = self.rings.ring >= opened
        kept = {name: _restored(value, state[name], frozen) for name, value in after.items()}
        return _restored(stepped, model, frozen), kept


def without_ring(
    number: int, rings: Rings, optimizer: ServerOptimizer, model: Array, state: OptimizerState
) -> tuple[Array, OptimizerState]:
    """Return model and state with ring `number`, from 1, as it was before it was opened: what is inside ignores it."""
    ring = rings.ring == number - 1
    quiet = np.where(ring & rings.reads, 0, model).astype(model.dtype)
    fresh = optimizer.initial_state(quiet)
    return quiet, {name: _restored(value, fresh[name], ring) for name, value in state.items()}


def _restored(after: Array, before: Array, mask: NDArray[np.bool_]) -> Array:
    """Return `after`, with the elements of `mask` as they were `before`, where these are parameters."""
    if after.shape != mask.shape:
        return after
    restored: Array = np.where(mask, before, after)
    return restored
