"""A stranger in the network of an owner's machines: it becomes no rank, and nobody listens to it."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.client.test_machines import Owner

from agfl_client.parallel.link import FROM_RANK, Begin, Join, Line, RankLostError, Share
from agfl_client.parallel.machine_key import machines_tls, make_machine_key
from agfl_models.errors import IdentityError


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path)
    yield owner
    owner.end()


class Bomb:
    """Who unpickles it writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._path),)


def test_attack_a_stranger_joins_in_place_of_a_machine(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It speaks as a rank does, with a key of its own, with none, or in plain; some stay silent."""
    other, stop, answers = tmp_path / "other.key", threading.Event(), list[bytes]()
    make_machine_key(other)
    host, port = owner.meet.split(":")
    no_key = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    no_key.check_hostname, no_key.verify_mode = False, ssl.CERT_NONE
    own_key = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    own_key.check_hostname, own_key.verify_mode = False, ssl.CERT_NONE
    own_key.load_cert_chain(other)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))

    def attack() -> None:
        with ExitStack() as silent:
            while not stop.wait(0.1):
                for tls in (no_key, own_key, None):
                    with suppress(OSError), socket.create_connection((host, int(port)), 2) as one:
                        if tls is None:
                            one.sendall(struct.pack(">Q", len(bomb)) + bomb)
                            continue
                        with tls.wrap_socket(one) as secured:
                            secured.sendall(struct.pack(">Q", len(bomb)) + bomb)
                            answers.append(secured.recv(100))
                with suppress(OSError):
                    silent.enter_context(socket.create_connection((host, int(port)), 2))

    attacking = threading.Thread(target=attack, daemon=True)
    attacking.start()
    while_open = threading.Timer(1.0, owner.start_machine)
    while_open.start()
    try:
        config, part, work = owner.bench.work([])
        owner.bench.trainer("ddp", config, part).train(work)
    finally:
        stop.set()
        attacking.join()
        while_open.join()
    assert "connected without the key of your machines, and was turned away" in caplog.text
    assert not any(answers), "it got not a byte"
    assert not (tmp_path / "exploded").exists()


def test_attack_a_machine_makes_the_node_build_what_a_rank_does_not_say(owner: Owner, tmp_path: Path) -> None:
    """It has the key, as one that was broken into has: what it can do is to spoil the round, as any rank can."""
    ours, its = socket.socketpair()
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    node, machine = Line(ours, FROM_RANK, 1), Line(its, FROM_RANK, 1)
    begin = Begin(1, 2, "cpu", "", 1, (), None, 1.0, b"")
    for content in (begin, Share(None, True, None), Join(begin, "cpu")):  # type: ignore[arg-type]
        machine.send(content)
        with pytest.raises(RankLostError, match="is none of"):
            node.receive()
    its.sendall(struct.pack(">Q", len(bomb)) + bomb)
    with pytest.raises(RankLostError, match="malformed"):
        node.receive()
    node.close()
    machine.close()
    assert not (tmp_path / "exploded").exists()


def test_attack_a_stranger_answers_at_the_nodes_address(owner: Owner, tmp_path: Path) -> None:
    """A machine says nothing to it, and does not come again."""
    other = tmp_path / "other.key"
    make_machine_key(other)
    host, port = owner.meet.split(":")
    with socket.create_server((host, int(port))) as server:
        machine = owner.start_machine()
        connected, _ = server.accept()
        with connected, pytest.raises(ssl.SSLError):
            machines_tls(other, is_node=True).wrap_socket(connected, server_side=True)
    assert machine.wait(10) == 3


def test_attack_what_machines_say_is_read_on_the_way(owner: Owner) -> None:
    """Both ends speak TLS 1.3 at least, and a machine without the file is no end."""
    for is_node in (True, False):
        tls = machines_tls(owner.key, is_node=is_node)
        assert tls.minimum_version == ssl.TLSVersion.TLSv1_3
        assert tls.verify_mode == ssl.CERT_REQUIRED
        assert len(tls.get_ca_certs()) <= 1, "no other authority"
    owner.key.unlink()
    with pytest.raises(IdentityError, match="no such file"):
        machines_tls(owner.key, is_node=False)
