"""How large the clients' updates are, beside how large their mean is: what FedExP's step size is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agfl_protocol.config.optimizer_config import FedExPConfig
from agfl_protocol.methods.method import Method, Round, State
from agfl_protocol.update import Total, Update

SQUARE_NORM = "update/square_norm"


@dataclass(frozen=True)
class SquareNorm(Method):
    """Add w_i * |delta_i|^2 to the sum; comes after weighting. The server gets sum(p_i * |delta_i|^2)."""

    name = "square_norm"

    @classmethod
    def of(cls, round_: Round) -> SquareNorm | None:
        """Where the server steps by FedExP."""
        return SquareNorm() if isinstance(round_.config.aggregation.server_optimizer, FedExPConfig) else None

    @property
    def sums(self) -> tuple[str, ...]:
        """Weighted squares."""
        return (SQUARE_NORM,)

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Add the metric `update/square_norm`."""
        # The gain has the weight in it, which a square has twice.
        return replace(update, metrics={**update.metrics, SQUARE_NORM: update.norm**2 / update.weight})

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Turn the sum into the mean."""
        mean = total.metrics[SQUARE_NORM] / total.weight
        return replace(total, metrics={**total.metrics, SQUARE_NORM: mean}), state
