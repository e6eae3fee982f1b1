"""A hostile server over the owners of the tiny run, and what two sums that it takes tell of each owner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hostile_server import HostileServer, Refused
from own_errors import Known, Target

from agfl_protocol.messages.counting import CountRequest
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.update import Vector

SECURE = ("aggregation.type=secure", "aggregation.min_cohort=null", "num_rounds=50")
# One batch of all text, so that a sum says the same each time.
EXACT = (
    "training.local_steps=null",
    "training.local_epochs=1",
    "training.batch_size=4096",
    "aggregation.max_weight=2000",
)
BPE = ("tokenizer={type: bpe, vocab_size: 262, merges_per_round: 2}", "model.vocab_size=262")
LEAST = 0.9  # own error that two sums must leave, where they are answered


def model_of(server: HostileServer, size: float = 0.1) -> Vector:
    return np.random.default_rng(3).normal(0, size, server.layout.size).astype(np.float32)


def own_errors(server: HostileServer, request: RoundRequest, sums: Sequence[Vector]) -> dict[str, float]:
    """Return of each owner what two or more sums leave of what it sent in one of them, that of `request`."""
    known = Known(sums)
    targets = (Target.of(name, [server.sent(name, request)] * 2) for name in server.names)
    return {target.name: known.error(target) for target in targets}


def refusal(server: HostileServer, request: RoundRequest | CountRequest, **sets: Sequence[str]) -> str:
    """Return the line with which a sum is refused."""
    with pytest.raises(Refused) as caught:
        server.sum(request, **sets)
    return caught.value.line


def counting(server: HostileServer) -> CountRequest:
    """A request to count all pairs, of round 1."""
    asked = server.request(model_of(server))
    numbers = asked.run_id, 1, asked.exchange, asked.plan_hash, asked.client_plan
    return CountRequest(*numbers, merges=(), num_new=0, max_cohort=asked.max_cohort)
