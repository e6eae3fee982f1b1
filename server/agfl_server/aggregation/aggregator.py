"""How the vectors of a cohort become their sum: the interface of the plain and of the secure way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias

from flwr.serverapp import Grid

from agfl_models.errors import AgflError, BrokenRule, ImplausibleSum, RoundError
from agfl_protocol.messages import wire
from agfl_protocol.secagg.lanes import Lanes
from agfl_server.rounds.journal import Records

Groups: TypeAlias = tuple[tuple[str, ...], ...]


def reasons(refused: Mapping[str, str]) -> str:
    """Return "; NAME: reason" for each who was left out, sorted by name."""
    return "".join(f"; {name}: {reason}" for name, reason in sorted(refused.items()))


class AttemptFailed(RoundError):
    """An exchange ended without a sum; the round goes on in the next one, or in the same.

    refused: NAME -> reason of whoever was left out; guilty: names proven to have broken the protocol, which the next
    exchange should leave out. is_spent: a vector may have left a client, so the exchange is never asked for again.
    bad: of whom one lied or more, where the sum is none of honest owners; kind: what that ends a round as. silent: who
    did not answer in time; refusing: NAME -> reason of who answered that it takes no part.
    """

    def __init__(
        self,
        code: str,
        line: str,
        refused: Mapping[str, str] | None = None,
        guilty: frozenset[str] = frozenset(),
        *,
        is_spent: bool = False,
        bad: Collection[str] = (),
    ) -> None:
        super().__init__(code, line)
        self.refused = dict(refused or {})
        self.guilty = guilty
        self.is_spent = is_spent
        self.bad = tuple(bad)
        self.silent: frozenset[str] = frozenset()
        self.refusing: Mapping[str, str] = {}
        self.kind: type[RoundError] = ImplausibleSum

    @classmethod
    def of(
        cls,
        error: AgflError | BrokenRule,
        sentence: str,
        refused: Mapping[str, str] | None = None,
        guilty: frozenset[str] = frozenset(),
        *,
        is_spent: bool = False,
        bad: Collection[str] = (),
    ) -> Self:
        """Return a failure with another error's code, whose rule was broken."""
        return cls(error.code, sentence, refused, guilty, is_spent=is_spent, bad=bad)


@dataclass(frozen=True)
class CohortSum:
    """What one exchange brought.

    exchange: its number. lanes: the sum, uint64 (num_lanes,), over `survivors`; refused: NAME -> reason of replies left
    out. silent: those of them that did not answer in time; refusing: those that answered that they take no part.
    """

    exchange: int
    lanes: Lanes
    survivors: tuple[str, ...]
    refused: Mapping[str, str]
    bytes_up: int
    bytes_down: int
    silent: frozenset[str] = frozenset()
    refusing: Mapping[str, str] = field(default_factory=dict)


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
        groups: Groups = (),
        records: Records | None = None,
    ) -> CohortSum:
        """Ask every client of `cohort` (NAME -> node id) and return the sum over those whose reply is good.

        groups: of which only whole ones may be in the sum; none where any owners may. records: what the trips of this
        exchange brought before a crash, and will bring.
        """
        ...

    def requiring(self, min_cohort: int) -> Aggregator:
        """Return the same, which sums over no fewer than `min_cohort` clients."""
        ...
