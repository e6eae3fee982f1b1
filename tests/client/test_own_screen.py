"""An owner whose text is of no use learns it on its own screen, before anybody waits for it, and joins once mended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from agfl_client.app import REFUSED, create_client_app
from agfl_client.approval import text_check
from agfl_client.approval.approvals import Approvals
from agfl_client.node import Node
from agfl_client.own_screen import OwnScreen, round_shown, size_shown
from agfl_client.policy import Policy
from agfl_models.errors import ConfigError, DataError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.plans.plan import Plan
from agfl_sim.engines.grid import InProcessGrid

POLICY = Policy(allow_plain=True, runs="all")


def deliver(app: ClientApp, content: RecordDict, kind: str, node: int = 7) -> Message:
    InProcessGrid({}, 1)  # makes this process one that may make messages
    message = Message(content, node, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, Context(1, node, {}, RecordDict(), {}))


def test_text_that_is_no_use_is_refused_with_the_plan_and_taken_once_it_is_mended(
    tmp_path: Path,
    run_config: Callable[..., RunConfig],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "agfl.client")
    monkeypatch.setattr(text_check, "_READ_AGAIN_S", 0.0)
    data = tmp_path / "zanzibar.txt"
    data.write_text("")
    node = Node("alice", data, "cpu", policy=POLICY, approvals=Approvals(tmp_path, POLICY, "operator"))
    app = create_client_app(node)
    content = wire.ProposeRequest(Plan.of(run_config().client_plan, "run", ["alice", "bob"], 2).to_json()).to_record()
    for _ in range(3):
        reply = deliver(app, content, wire.PROPOSE)
        assert reply.has_error()
        assert reply.error.code == REFUSED
        assert reply.error.reason == "data: this owner's data cannot be used"
    (line,) = caplog.messages
    assert "your node takes no part in the run: data: " in line
    assert "zanzibar.txt" in line
    data.write_text("To be, or not to be, that is the question.\n\nWhether it is nobler.\n" * 20)
    assert wire.ProposeReply.from_record(deliver(app, content, wire.PROPOSE).content).answer is wire.Answer.APPROVED
    assert caplog.messages[1:] == ["your node takes part in the run again"]


def test_of_two_nodes_of_one_app_it_is_the_one_that_refused_that_takes_part_again(
    make_owners: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agfl.client")
    node, broken = Node("alice", make_owners(1) / "owner-00.jsonl", "cpu", policy=POLICY), {7}

    def node_of(context: Context) -> Node:
        if context.node_id in broken:
            raise ConfigError("AGFL-CONFIG-000", "data: is gone")
        return node

    app, content = create_client_app(node_of), wire.IdentifyRequest().to_record()
    assert deliver(app, content, wire.IDENTIFY).has_error()
    assert not deliver(app, content, wire.IDENTIFY, 8).has_error()
    assert len(caplog.messages) == 1
    broken.clear()
    assert not deliver(app, content, wire.IDENTIFY).has_error()
    assert caplog.messages[1:] == ["your node takes part in the rounds again"]


def test_text_that_was_no_use_is_not_read_each_time_that_the_server_asks(
    tmp_path: Path, run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "own.txt"
    data.write_text("")
    node = Node("alice", data, "cpu", policy=POLICY, approvals=Approvals(tmp_path, POLICY, "operator"))
    request = wire.ProposeRequest(Plan.of(run_config().client_plan, "run", ["alice", "bob"], 2).to_json())
    reads = 0

    def read(config: RunConfig) -> list[object]:
        nonlocal reads
        reads += 1
        raise DataError("AGFL-DATA-000", "data: none")

    monkeypatch.setattr(node, "_rows", read)
    for _ in range(5):
        with pytest.raises(DataError):
            node.propose(request)
    assert reads == 1


def test_no_text_is_read_before_its_owner_approves(tmp_path: Path, run_config: Callable[..., RunConfig]) -> None:
    data = tmp_path / "own.txt"
    data.write_text("")
    policy = Policy(allow_plain=True)
    node = Node("alice", data, "cpu", policy=policy, approvals=Approvals(tmp_path, policy, "operator"))
    config = run_config(
        "training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=2000"
    )  # of epochs no own error is measured
    request = wire.ProposeRequest(Plan.of(config.client_plan, "run", ["alice", "bob"], 2).to_json())
    assert node.propose(request).answer is wire.Answer.PENDING


def test_a_reason_is_said_once_and_again_when_it_changes_or_ten_minutes_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agfl.client")
    now = 1000.0
    screen = OwnScreen(clock=lambda: now)
    for text in ("a: one", "a: one", "a: two", "a: two"):
        screen.refused("train", ConfigError("AGFL-CONFIG-000", text))
    begin, code = "your node takes no part in this round", "[AGFL-CONFIG-000]"
    assert caplog.messages == [f"{begin}: a: {word} {code}" for word in ("one", "two")]
    now += 600
    screen.refused("train", ConfigError("AGFL-CONFIG-000", "a: two"))
    assert len(caplog.messages) == 3
    screen.answered("train")
    screen.answered("train")
    assert caplog.messages[3:] == ["your node takes part in the rounds again"]


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (53_240, "53.2 kB"), (2.5e6, "2.5 MB"), (3e12, "3000.0 GB")],
)
def test_sizes_are_as_people_read_them(num_bytes: int, expected: str) -> None:
    assert size_shown(num_bytes) == expected


def test_a_round_is_told_by_its_number_rows_loss_and_seconds() -> None:
    trained = round_shown(3, 16, 1234, 4.06, loss=2.31514, evaluated=False)
    assert trained == "round 3 of 16: trained on your 1,234 rows, loss 2.315, 4.1 s"
    both = round_shown(3, 16, 1234, 4.06, loss=2.31514, evaluated=True)
    assert both == "round 3 of 16: trained on your 1,234 rows, loss 2.315, and evaluated the model before, 4.1 s"
    last = round_shown(17, 16, 1234, 0.5, loss=None, evaluated=True)
    assert last == "last evaluation: evaluated the model on your validation text, 0.5 s"
