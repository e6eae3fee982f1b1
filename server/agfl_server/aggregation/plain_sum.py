"""The plain sum: one exchange, each reply added and dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models.errors import WireError
from agfl_protocol.messages import wire
from agfl_protocol.secagg.lanes import Lanes
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum, Groups, LaneCodec, reasons
from agfl_server.rounds.journal import Records
from agfl_server.rounds.observer import Observer
from agfl_server.transport.clock import clock_of
from agfl_server.transport.limits import vector_reply_bytes
from agfl_server.transport.messaging import ask_nodes, error_of


@dataclass(frozen=True)
class PlainSum:
    """The server sees each client's vector and adds it up."""

    observer: Observer
    min_cohort: int

    def requiring(self, min_cohort: int) -> PlainSum:
        """Return the same, where fewer than `min_cohort` replies are no sum."""
        return replace(self, min_cohort=min_cohort)

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
        """One exchange. A bad reply is refused by name; the reply of a client that is silent is missed by name.

        Raises:
            AttemptFailed: fewer than `min_cohort` good replies came.
        """
        requests = _addressed(request, cohort)
        bytes_down = sum(map(wire.content_bytes, requests))
        names = {node: name for name, node in cohort.items()}
        lanes = np.zeros(codec.num_lanes, np.uint64)
        survivors: list[str] = []
        refused: dict[str, str] = {}
        refusing: dict[str, str] = {}
        bytes_up = 0
        clock, size = clock_of(grid), vector_reply_bytes(codec.num_lanes)
        started = clock.now()
        replies = ask_nodes(grid, requests, timeout_s, size, self.min_cohort)
        del requests  # a model
        for node, reply in replies:
            name = names.pop(node)
            bytes_up += wire.content_bytes(reply)
            if reply.has_error():
                refused[name], is_own = error_of(reply)
                self.observer.refused(name, refused[name])
                if is_own:
                    refusing[name] = refused[name]
                continue
            try:
                lanes += _read(reply, request, codec)
                survivors.append(name)
                self.observer.client_finished(name)
                self.observer.replied(name)
            except WireError as error:
                refused[name] = str(error)
                self.observer.refused(name, str(error))
            del reply  # a vector, before the next one
        silent = frozenset(names.values())
        for name in silent:
            refused[name] = f"no reply within {min(timeout_s, clock.now() - started):.3g} s"
            self.observer.refused(name, refused[name])
        if len(survivors) < self.min_cohort:
            line = f"updates: must be at least min_cohort = {self.min_cohort}, got {len(survivors)}{reasons(refused)}"
            failed = AttemptFailed("AGFL-ROUND-013", line, refused)
            failed.silent, failed.refusing = silent, refusing
            raise failed
        names_in = tuple(sorted(survivors))
        return CohortSum(request.exchange, lanes, names_in, refused, bytes_up, bytes_down, silent, refusing)


def _addressed(request: wire.SumRequest, cohort: Mapping[str, int]) -> list[Message]:
    content = request.to_record()
    return [Message(content, node, request.kind) for node in cohort.values()]


def _read(reply: Message, request: wire.SumRequest, codec: LaneCodec) -> Lanes:
    lanes = wire.RoundReply.from_record(reply.content, request, codec.num_lanes).lanes
    codec.check(lanes)
    return lanes
