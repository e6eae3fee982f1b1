"""What one owner's metrics are at most: honest updates stay within, a lie past it shows in the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_server import codec_of
from tests.client.test_node import UNASKED, request_of

from agfl_client.node import Node
from agfl_models.errors import ImplausibleSum
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.counting import CountCodec
from agfl_protocol.messages.wire import read_vector
from agfl_protocol.methods import candidates, elastic
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.update import Total
from agfl_server.rounds.state import initial_state

METHODS = {
    "mean": (),
    "epochs": ("training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=2000"),
    "elastic": ("elastic={widths: [0.5, 1.0]}",),
    "fedexp": ("aggregation.server_optimizer={type: fedexp}",),
}


def answered(node: Node, config: RunConfig) -> tuple[UpdateCodec, Lanes]:
    """The lanes of a node that trains and evaluates, and their codec."""
    request = replace(request_of(config), evaluate=True)
    layout, _ = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "r")
    codec = codec_of(request, layout)
    return codec, read_vector(node.handle_round(request), "lanes", np.uint64)


@pytest.mark.parametrize("method", METHODS)
def test_every_bounded_metric_has_room_for_honest_owners_and_for_nothing_above(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], method: str
) -> None:
    node = Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=UNASKED)
    codec, lanes = answered(node, run_config(*METHODS[method]))
    codec.check(lanes)
    codec.decode_checked(lanes)
    header = codec.quantization.header
    known = [name for name in header.metrics if name in header.limits]
    assert {"diverged", "clip/clipped"} <= set(known)
    assert ("train/tokens" in known) == (method != "epochs")
    for name in known:
        spoiled = lanes.copy()
        spoiled[2 + header.metrics.index(name)] = int(header.limits[name] * 2**20) + 2
        with pytest.raises(ImplausibleSum, match=rf"^metric {name}: "):
            codec.decode_checked(spoiled)


def total_of(metrics: dict[str, float], count: int) -> Total:
    return Total(np.zeros(0, np.float32), count, 1.0, metrics)


def test_each_owner_is_of_one_tier() -> None:
    method = elastic.Elastic(np.zeros(0, np.uint8), 2, 0.5)
    method.check(total_of({"rings/tier_1": 1.0, "rings/tier_2": 2.0}, 3))
    with pytest.raises(ImplausibleSum, match=r"^rings: .*got 4.*AGFL-ROUND-004"):
        method.check(total_of({"rings/tier_1": 2.0, "rings/tier_2": 2.0}, 3))


def test_a_sum_with_an_owner_in_two_tiers_is_not_used(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path]
) -> None:
    node = Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=UNASKED)
    codec, lanes = answered(node, run_config(*METHODS["elastic"]))
    header, lanes = codec.quantization.header, lanes.copy()
    for tier in (name for name in header.metrics if name.startswith("rings/tier_")):
        lanes[2 + header.metrics.index(tier)] = 2**20
    with pytest.raises(ImplausibleSum, match=r"^rings: .*got 2.*AGFL-ROUND-004"):
        codec.decode_checked(lanes)


def test_losses_of_candidates_have_a_bound_by_prediction() -> None:
    honest = {name: candidates.MAX_LOSS * 5 for name in candidates.names(2)} | {candidates.PREDICTIONS: 5.0}
    method = candidates.Candidates(2, 1, 5)
    method.check(total_of(honest, 2))
    with pytest.raises(ImplausibleSum, match=r"^candidates: .*got 5001.*AGFL-ROUND-002"):
        method.check(total_of(honest | {candidates.names(2)[1]: 5003.0}, 2))


def test_counts_of_pairs_have_a_bound_by_client() -> None:
    codec = CountCodec(0, 0, 4)
    total = codec.encode({(97, 98): 2**61 - 1}) * np.uint64(2)
    assert codec.decode_checked(total) == {(97, 98): 2**62 - 2}
    total[5] = 2**62 - 1
    with pytest.raises(
        ImplausibleSum, match=r"^pairs: the sum of a count must be at most \d+, got \d+.*AGFL-ROUND-005"
    ):
        codec.decode_checked(total)
