"""How large the clients' updates are, beside how large their mean is: what FedExP's step size is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agfl_protocol.update import Total, Update

SQUARE_NORM = "update/square_norm"


@dataclass(frozen=True)
class SquareNorm:
    """Add w_i * |delta_i|^2 to the sum; comes after weighting. The server gets sum(p_i * |delta_i|^2)."""

    def encode(self, update: Update) -> Update:
        """Add the metric `update/square_norm`."""
        # The gain has the weight in it, which a square has twice.
        return replace(update, metrics={**update.metrics, SQUARE_NORM: update.norm**2 / update.weight})

    def decode(self, total: Total) -> Total:
        """Turn the sum into the mean."""
        return replace(total, metrics={**total.metrics, SQUARE_NORM: total.metrics[SQUARE_NORM] / total.weight})
