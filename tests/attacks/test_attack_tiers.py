"""What a server that keeps every byte learns of one owner's device, or of its losses: nothing, in secure sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import agfl_sim.engines.inline_engine
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire, wire
from agfl_protocol.messages.header import RESOLUTION
from agfl_protocol.methods.method import Round
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import initial_state
from agfl_sim.engines.opened_owners import OwnersGrid
from agfl_sim.partition import device_widths

ELASTIC = (
    "num_rounds=2",
    "evaluation.every=1",
    "elastic={widths: [0.5, 1.0]}",
    "data.max_widths={0.5: 3, 1.0: 3}",
    "aggregation.min_cohort=3",
    "aggregation.max_colluders=1",
)
FIRST_NODE = 1000


class Listening(OwnersGrid):
    """Keeps each reply: (message type, node) -> those of all rounds."""

    heard: dict[tuple[str, int], list[Message]]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            key = reply.metadata.message_type, reply.metadata.src_node_id - FIRST_NODE
            self.heard.setdefault(key, []).append(reply)
        return replies


Heard = dict[tuple[str, int], list[Message]]


@pytest.fixture
def listen(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], tuple[RunConfig, Heard]]:
    """Run the federation with sums of a kind; return what the server heard."""

    def run(kind: str) -> tuple[RunConfig, Heard]:
        heard: Heard = {}
        monkeypatch.setattr(Listening, "heard", heard, raising=False)
        monkeypatch.setattr(agfl_sim.engines.inline_engine, "OwnersGrid", Listening)
        config = run_config(*ELASTIC, f"aggregation.type={kind}")
        agfl_sim.engines.inline_engine.InlineEngine(config, sorted(make_owners(6).iterdir())).run(
            tmp_path / kind, resume=False, observer=Observer()
        )
        return config, heard

    return run


def read(config: RunConfig, lanes: Lanes) -> dict[str, float]:
    """Read a client's vector as the server reads the sum."""
    layout, _ = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "r")
    plan = QuantizationPlan(2, 6)
    codec = UpdateCodec.for_round(
        Round(config.client_plan, rings=config.build_rings()),
        config.build_task(),
        layout,
        plan,
        round_number=1,
        train=True,
        evaluate=True,
    )
    header = codec.quantization.header
    return dict(zip(("count", "weight", *header.metrics), lanes[: header.size] / RESOLUTION, strict=True))


def vectors(heard: Heard, kind: str, owner: int) -> list[Lanes]:
    """Return what an owner sent for the sums of training."""
    return [np.asarray(reply.content["arrays"]["lanes"].numpy()) for reply in heard[kind, owner]][:2]  # type: ignore[union-attr]


def test_the_reader_finds_tiers_and_losses_in_plain_sums(listen: Callable[[str], Any]) -> None:
    """So the next test would find them, too, if they could be read."""
    config, heard = listen("plain")
    for owner, width in enumerate(device_widths(config, 6)):
        for vector in vectors(heard, wire.TRAIN, owner):
            found = read(config, vector)
            assert (found["rings/tier_1"], found["rings/tier_2"]) == (width == 0.5, width == 1.0)
            assert 0 < found["eval/nll"] / found["eval/tokens"] < 10


def test_attack_the_server_reads_an_owners_tier_or_loss(listen: Callable[[str], Any]) -> None:
    """Every lane that would say it is noise, and no message tells a device by its length."""
    config, heard = listen("secure")
    widths = device_widths(config, 6)
    for owner in range(6):
        for vector in vectors(heard, secure_wire.MASK, owner):
            for name, value in read(config, vector).items():
                # Uniform in [0, 2^44): below 2^20, where all is that means anything, by a chance of 2^-24.
                assert value > 2**20, name
    small, large = widths.index(0.5), widths.index(1.0)
    for kind in {kind for kind, _ in heard}:
        for first, second in zip(heard[kind, small], heard[kind, large], strict=True):
            assert wire.content_bytes(first) == wire.content_bytes(second)
