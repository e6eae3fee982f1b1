"""A stranger on the owner's machine: it takes no rank's place, and what it sends to their ports changes nothing."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.client.test_parallel import Bench, Striking
from tests.forked_workers import forked_impostor, forked_rank

from agfl_client.parallel import group, ranks
from agfl_client.parallel.link import Begin
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


def test_attack_the_meeting_place_is_closed_to_other_users(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begins: list[Begin] = []
    genuine = group.join

    def join(begin: Begin) -> None:
        begins.append(begin)
        genuine(begin)

    monkeypatch.setattr(group, "join", join)
    bench.shared.ranks.start()
    folder = begins[0].store.parent
    assert folder.stat().st_mode & 0o077 == 0
    assert "secret" not in repr(begins[0])
    assert not any(begins[0].secret in path.read_bytes() for path in folder.iterdir()), "it is in no file"
    bench.shared.end()
    assert not folder.exists()
