"""A server that wants the vector that a simulation sends without masks: no deployed node has a way to send it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from tests.secagg_world import World, exchange_id, round_request

from agfl_models.errors import AgflError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.messages import AgreeRequest, MaskRequest
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.app import build_aggregator
from agfl_server.rounds.observer import Observer

ROOT = Path(__file__).parents[2]
NAMES = ("owner-000", "owner-001", "owner-002")


def simulated_agree() -> RecordDict:
    """The second message of a simulated sum."""
    record = sw.write_agree_request(AgreeRequest(exchange_id(), NAMES))
    record["rings"] = ConfigRecord({"rings": [1, 1, 1]})
    return record


def test_a_real_node_answers_the_simulation_s_messages_with_keys_and_a_refusal(tmp_path: Path) -> None:
    world = World.of(3, tmp_path)
    owner = world.owners[NAMES[0]]
    secret = owner.vector.tobytes()
    request = round_request().to_record()
    request["rings"] = ConfigRecord({"rings": [1], "simulate_masks": [0]})
    reply = owner.answer(wire.TRAIN, request)
    assert not reply.array_records
    assert all(secret not in content.deflate() for content in reply.values())
    with pytest.raises(ProtocolViolation, match="must follow Masked of an exchange under way"):
        owner.answer(sw.AGREE, simulated_agree())
    # Having refused once, it has nothing left to send.
    with pytest.raises(ProtocolViolation, match="must follow Shared"):
        owner.answer(sw.MASK, sw.write_mask_request(MaskRequest(exchange_id(), NAMES[:1], ())))
    assert not owner.half.member.ledger.has_left("run", 0)


def test_what_a_real_node_sends_after_any_first_message_is_never_its_vector(tmp_path: Path) -> None:
    for kind in (sw.SHARE, sw.MASK, sw.AGREE, sw.UNMASK):
        (tmp_path / kind).mkdir()
        owner = World.of(3, tmp_path / kind).owners[NAMES[0]]
        owner.answer(wire.TRAIN, round_request().to_record())
        for content in (simulated_agree(), round_request().to_record(), RecordDict()):
            with pytest.raises((AgflError, ProtocolViolation)):
                owner.answer(kind, content)
        assert not owner.half.member.ledger.has_left("run", 0)


def test_no_run_can_ask_for_it_and_no_server_has_it(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    for key in ("simulate_masks", "aggregation.simulate_masks"):
        with pytest.raises(AgflError, match="simulate_masks"):
            run_config(f"{key}=false")
    secure = "aggregation={type: secure, server_optimizer: {type: nesterov}, max_colluders: 1, min_cohort: 3}"
    aggregation = run_config(secure).aggregation
    aggregator, _ = build_aggregator(aggregation, World.of(3, tmp_path).roster, Observer())
    assert type(aggregator) is SecureSum
    deployed = (path for folder in ("server", "client", "shared_models") for path in (ROOT / folder).rglob("*.py"))
    named = re.compile("(import|from) agfl_sim|Unmasked|simulate_masks")
    assert not [path for path in deployed if named.search(path.read_text())]
