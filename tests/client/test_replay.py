"""No exchange is answered twice, whatever is restarted, lost or asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.secagg_world import World, exchange_id, round_request

from agfl_client import replay
from agfl_client.replay import MAX_RUNS, REPLAY_FILE, ReplayMemory
from agfl_models.errors import ConfigError
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.errors import ProtocolViolation

ATTEMPTS = st.lists(
    st.builds(ExchangeId, st.sampled_from(["a", "b"]), st.integers(1, 4), st.integers(0, 4)), max_size=25
)


@given(asked=ATTEMPTS, restarts=st.sets(st.integers(0, 24)), bound=st.integers(1, 3))
def test_what_is_answered_only_grows(
    tmp_path_factory: pytest.TempPathFactory, asked: list[ExchangeId], restarts: set[int], bound: int
) -> None:
    folder = tmp_path_factory.mktemp("node")
    memory = ReplayMemory(folder, bound)
    answered: list[ExchangeId] = []
    for i, exchange in enumerate(asked):
        if i in restarts:
            memory = ReplayMemory(folder, bound)
        of_run = [a for a in answered if a.run_id == exchange.run_id]
        of_round = [a for a in of_run if a.round == exchange.round]
        if all(exchange > a for a in of_run) and len(of_round) < bound:
            memory.record(exchange)
            answered.append(exchange)
        else:
            with pytest.raises(ProtocolViolation, match=r"^exchange: must "):
                memory.check(exchange)
            with pytest.raises(ProtocolViolation, match=r"^exchange: must "):
                memory.record(exchange)


def test_the_lines_say_what_was_answered(tmp_path: Path) -> None:
    memory = ReplayMemory(tmp_path, 1)
    memory.record(ExchangeId("run", 5, 2))
    with pytest.raises(
        ProtocolViolation, match=r"^exchange: must come after round 5 exchange 2, got run run round 5 exchange"
    ):
        memory.check(ExchangeId("run", 5, 2))
    bound = r"^exchange: must be among the exchanges at a round that this owner's uploads_per_round allows, got run run"
    with pytest.raises(ProtocolViolation, match=bound):
        memory.check(ExchangeId("run", 5, 3))


def test_the_attempt_is_on_disk_before_the_reply_leaves(tmp_path: Path) -> None:
    world = World.of(3, tmp_path)
    owner = world.owners[world.names[0]]
    owner.half.begin(round_request(), owner.vector.copy())
    content = json.loads((tmp_path / owner.name / REPLAY_FILE).read_text())
    assert content == {"version": 1, "runs": {"run": [1, 0, 1]}}
    assert (tmp_path / owner.name / REPLAY_FILE).stat().st_mode & 0o777 == 0o600


def test_the_file_is_durable_before_it_takes_its_place_and_so_is_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace_file = os.replace

    def sync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file")

    def replace(old: Path, new: Path) -> None:
        events.append("replace")
        replace_file(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    ReplayMemory(tmp_path, 3).record(exchange_id())
    assert events == ["file", "replace", "folder"]


def test_nothing_is_answered_that_cannot_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ReplayMemory(tmp_path, 3)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"^replay\.json: cannot be written on this node: No space left on device$"):
        memory.record(exchange_id())
    monkeypatch.undo()
    memory.record(exchange_id())
    with pytest.raises(ProtocolViolation):
        ReplayMemory(tmp_path, 3).record(exchange_id())


def test_runs_are_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_RUNS", 2)
    memory = ReplayMemory(tmp_path, 3)
    memory.record(ExchangeId("a", 1, 0))
    memory.record(ExchangeId("b", 1, 0))
    with pytest.raises(ProtocolViolation, match=r"^run_id: must be one of the 2 that this node remembers, got 'c'$"):
        memory.record(ExchangeId("c", 1, 0))
    memory.record(ExchangeId("a", 1, 1))


def test_a_full_memory_fits_the_file_that_is_read(tmp_path: Path) -> None:
    run = {f"{i:064}": [2**31 - 1, 2**31 - 1, 2**31 - 1] for i in range(MAX_RUNS)}
    (tmp_path / REPLAY_FILE).write_text(json.dumps({"version": 1, "runs": run}))
    with pytest.raises(ProtocolViolation):
        ReplayMemory(tmp_path, 3).check(ExchangeId("0" * 64, 1, 0))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "\xff",
        '{"version": 2, "runs": {}}',
        '{"version": 1, "runs": []}',
        '{"version": 1, "runs": {"a": [1]}}',
        '{"version": 1, "runs": {"a": [1, "x", 1]}}',
        '{"version": 1, "runs": {"": [1, 0, 1]}}',
    ],
)
def test_a_file_that_was_spoiled_is_not_taken_for_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / REPLAY_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"replay\.json: must hold the answered exchanges as this node wrote them"):
        ReplayMemory(tmp_path, 3)
