"""A stranger on the owner's machine: it takes no rank's place, and what it sends to their ports changes nothing."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from tests.client.test_parallel import Bench, Striking
from tests.forked_workers import ForkedWorker, forked_impostor, forked_late_rank, forked_rank

from agfl_client.parallel import group, ranks
from agfl_client.parallel.link import Begin, Line
from agfl_client.parallel.ranks import Ranks
from agfl_client.parallel.trainer import SharedTraining
from agfl_models.errors import ConfigError


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path, SharedTraining(Ranks(("cpu", "cpu"))))
    monkeypatch.setattr(ranks, "launch", forked_rank)
    yield bench
    bench.shared.end()


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses where a process listens, IPv4 in network order as the system has them, and IPv6."""
    ends = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in ends:
                address, _, port = fields[1].partition(":")
                found.append((address, int(port, 16)))
    return found


def test_attack_one_that_does_not_know_the_secret_takes_a_ranks_place(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows where the ranks meet, and speaks as one of them does."""
    monkeypatch.setattr(ranks, "launch", forked_impostor)
    monkeypatch.setattr("agfl_client.parallel.trainer._ATTEMPTS", 1)
    config, part, work = bench.work([])
    drawn: list[str] = []
    striking = Striking(work, 1, lambda: drawn.append("a batch"))
    with pytest.raises(ConfigError, match="AGFL-CONFIG-254"):
        bench.trainer("ddp", config, part).train(replace(work, dataset=striking))
    assert not drawn, "it got no text"


def test_attack_a_stranger_connects_to_every_port_of_the_ranks(bench: Bench) -> None:
    """They listen at loopback alone. What is said there, as gloo says it or not, changes no bit of a round."""
    config, part, work = bench.work([])
    expected = bench.trainer("ddp", config, part).train(work)
    pids, held = bench.shared.ranks.pids, []

    def connect() -> None:
        for pid in (os.getpid(), *pids):
            for address, port in listening(pid):
                assert address in ("0100007F", "00000000000000000000000001000000"), address
                family, host = (socket.AF_INET, "127.0.0.1") if len(address) == 8 else (socket.AF_INET6, "::1")
                for content in (struct.pack("<Q", 0), struct.pack("<Q", 1), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096):
                    held.append(socket.socket(family, socket.SOCK_STREAM))
                    held[-1].settimeout(5)
                    with suppress(OSError):
                        held[-1].connect((host, port))
                        held[-1].sendall(content)

    config, part, work = bench.work([])
    got = bench.trainer("ddp", config, part).train(replace(work, dataset=Striking(work, 3, connect)))
    assert held, "there was something to connect to"
    for one in held:
        one.close()
    assert got.delta.tobytes() == expected.delta.tobytes()
    assert bench.shared.ranks.pids == pids


class Holding:
    """A stranger that is the first to connect to every port of some processes, as gloo does, and stays silent."""

    def __init__(self) -> None:
        self.pids, self._held, self._over = [os.getpid()], dict[int, list[socket.socket]](), Event()
        self._thread = Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        while not self._over.wait(0.005):
            with suppress(OSError):  # a descriptor that was just closed
                for port in {port for pid in self.pids for address, port in listening(pid) if address == "0100007F"}:
                    if port not in self._held:
                        self._held[port] = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
                        for number, one in enumerate(self._held[port]):
                            one.sendall(struct.pack("<Q", number))

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        for held in self._held.values():
            for one in held:
                one.close()


def test_attack_a_stranger_that_holds_up_a_start_costs_another_one_and_no_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, part, work = bench.work([])
    expected = bench.trainer("ddp", config, part).train(work)
    stranger = Holding()

    def launch(descriptor: int, num_threads: int) -> ForkedWorker:
        if len(stranger.pids) > 1:
            stranger.end()
            monkeypatch.setattr(group, "MEET_S", 60.0)
            return forked_rank(descriptor, num_threads)
        rank = forked_late_rank(descriptor, num_threads)
        stranger.pids.append(rank.pid)
        return rank

    monkeypatch.setattr(ranks, "launch", launch)
    for _ in range(5):  # now and then it is too late
        bench.shared.end()
        stranger.end()
        stranger = Holding()
        monkeypatch.setattr(group, "MEET_S", 1.5)
        config, part, work = bench.work([])
        got = bench.trainer("ddp", config, part).train(work)
        assert got.delta.tobytes() == expected.delta.tobytes()
        if "the ranks did not meet" in caplog.text:
            break
    stranger.end()
    assert "the ranks did not meet" in caplog.text


def test_attack_there_is_no_meeting_place_for_other_users(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The ranks meet over the node's own lines: in no file and at no port but those where they prove who they are."""
    begins: list[Begin] = []
    genuine = group.join

    def join(begin: Begin, lines: Sequence[Line]) -> None:
        begins.append(begin)
        before = listening(os.getpid())
        genuine(begin, lines)
        assert len(listening(os.getpid())) - len(before) <= 1, "gloo's"

    monkeypatch.setattr(group, "join", join)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    bench.shared.ranks.start()
    assert "secret" not in repr(begins[0])
