"""How a sum comes about: sample a cohort, broadcast, sum; again under the next number while too few clients answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from flwr.serverapp import Grid

from agfl_models.errors import RoundError
from agfl_protocol import wire
from agfl_protocol.run_config import RunConfig
from agfl_server.aggregator import Aggregator, AttemptFailed, CohortSum, LaneCodec
from agfl_server.connected_nodes import ConnectedNodes
from agfl_server.observer import Observer
from agfl_server.sampling import sample_cohort

CodecT = TypeVar("CodecT", bound=LaneCodec)


@dataclass(frozen=True)
class Parties:
    """Who takes part in sums, and by which rules.

    next_attempt: as `RunFolder.next_attempt`; members: sums are over exactly these, if given. num_owners: that can
    ever take part; None where nobody knows.
    """

    config: RunConfig
    grid: Grid
    nodes: ConnectedNodes
    aggregator: Aggregator
    observer: Observer
    min_cohort: int
    next_attempt: Callable[[str, int, frozenset[str]], tuple[int, frozenset[str]]]
    members: frozenset[str] | None = None
    num_owners: int | None = None

    def cannot_do_without(self, excluded: Collection[str]) -> bool:
        """Whether no sum can come about any more without these owners."""
        if not excluded or self.members is not None:
            return bool(excluded)  # a sum needs all members
        return self.num_owners is not None and self.num_owners - len(excluded) < self.min_cohort


def sum_in_attempts(
    parties: Parties,
    run_id: str,
    number: int,
    broadcast: Callable[[Collection[str], int, Collection[str]], tuple[wire.SumRequest, CodecT]],
) -> tuple[CodecT, CohortSum]:
    """Return the sum of round `number`; `broadcast` makes the request and its codec.

    It is given the cohort, the number of the exchange, and whoever was refused in exchanges that failed; they are not
    drawn again while there are enough others.

    Raises:
        RoundError: after `max_attempts` exchanges, or where too few are left without those who broke the protocol, with
            the reasons of the last.
    """
    aggregation = parties.config.aggregation
    excluded: set[str] = set()
    refused: frozenset[str] = frozenset()
    tried = 0
    while True:
        tried += 1
        exchange, refused = parties.next_attempt(run_id, number, refused)
        nodes = parties.nodes.wait_for(parties.min_cohort, excluded, parties.members)
        cohort = sample_cohort(nodes, aggregation.cohort_size, parties.config.seed, number, refused)
        request, codec = broadcast(cohort, exchange, refused)
        try:
            return codec, parties.aggregator.sum(parties.grid, cohort, request, codec, aggregation.round_timeout_s)
        except AttemptFailed as error:
            parties.observer.repeated(number, exchange, str(error))
            excluded |= error.guilty
            refused |= error.refused.keys()
            if parties.cannot_do_without(excluded) or tried == aggregation.max_attempts:
                line = f"round {number}: failed in {tried} exchanges, the last because {error}"
                raise RoundError(line) from None
