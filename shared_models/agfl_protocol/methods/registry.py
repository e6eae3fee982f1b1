"""All methods, in the order in which they work on an update and in which their sums travel: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agfl_protocol.methods.alignment import AlignmentWeighting
from agfl_protocol.methods.candidates import Candidates
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.divergence import Divergence
from agfl_protocol.methods.drift import OwnerStates
from agfl_protocol.methods.elastic import Elastic
from agfl_protocol.methods.fair_weighting import FairWeighting
from agfl_protocol.methods.method import Method, Round
from agfl_protocol.methods.normalization import NormalizedAveraging
from agfl_protocol.methods.square_norm import SquareNorm
from agfl_protocol.methods.weighting import Weighting

if TYPE_CHECKING:
    from agfl_protocol.config.run_config import RunConfig

# The order is a law: what diverged is taken out first, and clipping before weighting bounds what one client can add.
METHODS: tuple[type[Method], ...] = (
    Candidates,
    Divergence,
    Clipping,
    Weighting,
    AlignmentWeighting,
    FairWeighting,
    NormalizedAveraging,
    SquareNorm,
    Elastic,
    OwnerStates,
)


def methods_of(round_: Round) -> tuple[Method, ...]:
    """Return the methods that a round has."""
    found = (method.of(round_) for method in METHODS)
    return tuple(method for method in found if method is not None)


def refuse_misfits(config: RunConfig) -> None:
    """Raise ValueError, one line, where the methods that a run names do not go together."""
    for method in METHODS:
        method.refuse_misfit(config)
