"""Ranks of another machine train as those of this one do; what cannot be one is turned away on both screens."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.client.test_parallel import Bench, Striking, check_equal
from tests.forked_workers import ForkedElsewhere, of_another_version, with_another_device

from agfl_client.parallel.choice import Parallel
from agfl_client.parallel.door import Door, with_door
from agfl_client.parallel.link import Begin, Share, Train
from agfl_client.parallel.machine_key import make_machine_key
from agfl_client.parallel.plain import NotPlainError, decode, encode, loaded_dataclass
from agfl_client.parallel.ranks import Ranks
from agfl_client.parallel.trainer import SharedTraining
from agfl_models.errors import AgflError, ConfigError
from agfl_models.tasks.own_task import TensorBatch
from agfl_models.tasks.sequence_to_sequence import PairBatch


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Owner:
    """An owner with two machines, both of them this one."""

    def __init__(self, folder: Path) -> None:
        self.key, self.meet = folder / "machines.key", f"127.0.0.1:{free_port()}"
        make_machine_key(self.key)
        self.bench = Bench(folder, SharedTraining(Ranks(("cpu",), others=1, door=Door(self.meet, self.key, "cpu"))))
        self.machines: list[ForkedElsewhere] = []

    def start_machine(self, first: Callable[[], None] | None = None, key: Path | None = None) -> ForkedElsewhere:
        self.machines.append(ForkedElsewhere([self.meet, str(key or self.key), "1", "", "cpu"], first))
        return self.machines[-1]

    def end(self) -> None:
        self.bench.shared.end()
        for machine in self.machines:
            machine.kill()
            machine.wait()
            machine.stdin.close()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path)
    yield owner
    owner.end()


def test_two_machines_train_as_one_process_and_one_that_is_killed_changes_no_bit(
    owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    first = owner.start_machine()
    check_equal(owner.bench, "ddp", [], shaped=True)
    check_equal(owner.bench, "fsdp2", [])
    config, part, work = owner.bench.work([])
    expected = owner.bench.trainer("ddp", config, part).train(work)
    assert first.poll() is None, "it stayed warm"

    def kill() -> None:
        os.kill(first.pid, signal.SIGKILL)
        owner.start_machine()

    config, part, work = owner.bench.work([])
    got = owner.bench.trainer("ddp", config, part).train(replace(work, dataset=Striking(work, 3, kill)))
    assert got.delta.tobytes() == expected.delta.tobytes()
    assert "rank 1 at 127.0.0.1 was lost; all are started again, and the round too" in caplog.text
    owner.bench.shared.end()
    assert owner.machines[-1].wait(10) in (0, 1), "it ends once the node hangs up"


def test_a_machine_that_hangs_does_not_stop_the_node_beyond_its_deadline(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agfl_client.parallel import group, ranks
    from agfl_client.training.deadline import Deadline, OutOfTime

    monkeypatch.setattr(ranks, "_MOMENT_S", 0.2)
    monkeypatch.setattr(ranks, "_END_S", 0.2)
    monkeypatch.setattr(group, "MOMENT_S", 0.2)
    machine = owner.start_machine()
    owner.bench.shared.ranks.start()
    config, part, work = owner.bench.work([])
    hanging = Striking(work, 2, lambda: os.kill(machine.pid, signal.SIGSTOP))
    began, deadline = time.monotonic(), Deadline.after(1)
    trainer = replace(owner.bench.trainer("ddp", config, part), deadline=deadline)
    with pytest.raises(OutOfTime):
        trainer.train(replace(work, dataset=hanging, check_deadline=deadline.check))
    assert time.monotonic() - began < 10, "not the five minutes of one that is silent"


@pytest.mark.parametrize(
    ("first", "line"),
    [
        (of_another_version, r"ranks of other machines must be of the node's version of agfl, .*, got 0.0.1 \[AGFL-C"),
        (with_another_device, r"must have the node's kind of device, cpu, got cuda \[AGFL-CONFIG-292\]"),
    ],
)
def test_a_machine_that_does_not_fit_is_turned_away(owner: Owner, first: Callable[[], None], line: str) -> None:
    machine = owner.start_machine(first)
    config, part, work = owner.bench.work([])
    with pytest.raises(ConfigError, match=line):
        owner.bench.trainer("ddp", config, part).train(work)
    assert machine.wait(10) == 3, "its command does not start it again"


@pytest.mark.parametrize(
    ("choice", "meet", "line"),
    [
        ("single+1", None, "AGFL-CONFIG-251"),
        ("ddp:2+63", "127.0.0.1:1", "AGFL-CONFIG-252"),
        (
            "ddp+1",
            None,
            r"^--meet: must be given with ranks of other machines, .*, got None and 1 of them \[AGFL-CONFIG-297",
        ),
        ("ddp:2", "127.0.0.1:1", r"got '127.0.0.1:1' and 0 of them \[AGFL-CONFIG-297"),
        ("ddp+1", "127.0.0.1", r"^--meet: must be HOST:PORT, got '127.0.0.1' \[AGFL-CONFIG-293"),
        (
            "ddp+1",
            "203.0.113.9:9",
            r"^--meet: must be an IPv4 address of this machine and a free port, .*AGFL-CONFIG-294",
        ),
    ],
)
def test_a_meeting_that_cannot_be_is_refused(tmp_path: Path, choice: str, meet: str | None, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        with_door(Parallel.of(choice, "cpu"), meet, tmp_path / "machines.key")


def test_a_choice_with_other_machines(tmp_path: Path) -> None:
    assert Parallel.of("ddp+1", "cpu") == Parallel("ddp", ("cpu",), 1)
    assert Parallel.of("fsdp2:2+4", "cpu") == Parallel("fsdp2", ("cpu", "cpu"), 4)
    key = tmp_path / "machines.key"
    door = with_door(Parallel.of("auto+1", "cpu"), f"localhost:{free_port()}", key).door
    assert door is not None
    assert door.address == "127.0.0.1"
    assert key.stat().st_mode & 0o777 == 0o600
    key.write_text("not a key")
    with pytest.raises(ConfigError, match=r"must be the machines.key that the node made .*AGFL-CONFIG-291"):
        Door("127.0.0.1:1", key, "cpu")
    key.chmod(0o640)
    with pytest.raises(AgflError, match="IDENTITY"):
        Door("127.0.0.1:1", key, "cpu")


def test_what_is_said_comes_out_as_it_went_in() -> None:
    ids = torch.arange(10).view(5, 2)
    draws = np.random.default_rng(3).bit_generator.state
    pairs = PairBatch(ids, ids > 2, ids[:0], ids.to(torch.bfloat16), (("sea", "\u00e9"),))
    for rows in (pairs, TensorBatch((ids.T, ids[:, 0].float()))):
        got = decode(encode(Share(rows, True, draws)), loaded_dataclass)
        assert (got.is_real, got.draws, type(got.rows)) == (True, draws, type(rows))
        for one, its in zip(vars(rows).values(), vars(got.rows).values(), strict=True):
            for left, right in zip(*((x if isinstance(x, tuple) else (x,)) for x in (one, its)), strict=True):
                assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    begin = Begin(1, 2, "cpu", "", 1, ("a",), Path("b"), 0.1, b"secret")
    assert decode(encode(begin), loaded_dataclass) == begin
    train = Train(None, draws, ((0.1, None, 1e-30),), 3)  # type: ignore[arg-type]
    assert decode(encode(train), loaded_dataclass) == train
    for content in (b"", b"\0" * 8, encode(begin)[:-1], encode(begin).replace(b"agfl_client.parallel.link", b"x" * 25)):
        with pytest.raises(NotPlainError):
            decode(content, loaded_dataclass)


def test_the_names_of_types_lead_to_dataclasses_alone() -> None:
    for name in ("os.system", "builtins.eval", "subprocess.Popen", "nowhere.Nothing", re.__name__):
        with pytest.raises(NotPlainError):
            loaded_dataclass(name)
