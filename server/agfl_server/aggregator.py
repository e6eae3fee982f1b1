"""How the vectors of a cohort become their sum: the interface of the plain and of the secure way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.serverapp import Grid

from agfl_models.errors import RoundError
from agfl_protocol import wire
from agfl_protocol.secagg.lanes import Lanes


def reasons(refused: Mapping[str, str]) -> str:
    """Return "; NAME: reason" for each who was left out, sorted by name."""
    return "".join(f"; {name}: {reason}" for name, reason in sorted(refused.items()))


class AttemptFailed(RoundError):
    """An exchange ended without a sum; it may be repeated under the next number, with fresh keys.

    refused: NAME -> reason of whoever was left out; guilty: names proven to have broken the protocol, which the next
    exchange should leave out.
    """

    def __init__(self, line: str, refused: Mapping[str, str], guilty: frozenset[str] = frozenset()) -> None:
        super().__init__(line)
        self.refused = dict(refused)
        self.guilty = guilty


@dataclass(frozen=True)
class CohortSum:
    """What one exchange at a round brought.

    exchange: its number. lanes: the sum, uint64 (num_lanes,), over `survivors`; refused: NAME -> reason of replies left
    out.
    """

    exchange: int
    lanes: Lanes
    survivors: tuple[str, ...]
    refused: Mapping[str, str]
    bytes_up: int
    bytes_down: int


class LaneCodec(Protocol):
    """What a sum needs to know of the vectors that it sums."""

    @property
    def num_lanes(self) -> int:
        """Their length."""
        ...

    def check(self, lanes: Lanes) -> None:
        """Check one client's vector, where it can be seen; raises WireError."""
        ...


class Aggregator(Protocol):
    """How the vectors of a cohort become their sum; TensorFlow Federated calls it an AggregationProcess."""

    def sum(
        self,
        grid: Grid,
        cohort: Mapping[str, int],
        request: wire.SumRequest,
        codec: LaneCodec,
        timeout_s: float,
    ) -> CohortSum:
        """Ask every client of `cohort` (NAME -> node id) and return the sum over those whose reply is good."""
        ...

    def requiring(self, min_cohort: int) -> Aggregator:
        """Return the same, which sums over no fewer than `min_cohort` clients."""
        ...
