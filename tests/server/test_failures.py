"""Nodes and servers that die, return, or are not who they should be."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from tests.commands import Started

from agfl_client import keys
from agfl_client.transport import supernode
from agfl_client.transport.supernode import run_node
from agfl_models.errors import IdentityError, TransportError
from agfl_server.federation import federation_folder
from agfl_server.transport import superlink
from agfl_server.transport.superlink import EmbeddedSuperLink

if TYPE_CHECKING:
    from tests.server.conftest import Site

MESSAGE_UNAVAILABLE, INVALID_FAB = 3, 7
PROMPT_S = 15.0  # an idle machine needs less than 1 s, a busy one more to end a Python process


def _connected(server: EmbeddedSuperLink) -> list[int]:
    return list(server.grid.get_node_ids())


def _wait_for_node(site: Site, server: EmbeddedSuperLink) -> int:
    site.wait_until(lambda: len(_connected(server)) == 1)
    return _connected(server)[0]


def _error_of(site: Site, port: int, ca: Path, name: str = "alice", max_wait_s: float = 10) -> str:
    """Return the line with which a node gives up."""
    transport = keys.load(site.keys(name)).transport
    with pytest.raises((IdentityError, TransportError)) as caught:
        run_node(
            f"127.0.0.1:{port}",
            ca,
            transport,
            ClientApp(),
            stop=threading.Event(),
            finished=lambda: False,
            max_wait_s=max_wait_s,
        )
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_node_whose_key_is_not_registered_is_told_what_to_do(site: Site, tmp_path: Path) -> None:
    keys.generate("mallory", site.keys("mallory"))
    with site.superlink() as server:
        line = _error_of(site, server.port, site.ca, "mallory")
        assert _connected(server) == []
    assert line.startswith("IdentityError: transport key: 127.0.0.1:")
    assert "does not admit this key" in line
    assert "agfl-server add-node" in line


def test_a_server_of_another_ca_is_not_spoken_to(site: Site, tmp_path: Path) -> None:
    federation_folder.init(tmp_path / "other", "", [])
    with site.superlink() as server:
        start = time.monotonic()
        line = _error_of(site, server.port, tmp_path / "other" / "ca.pem")
        assert time.monotonic() - start < PROMPT_S
        expected = f"IdentityError: --ca: the certificate of 127.0.0.1:{server.port} is not signed by {tmp_path}"
    assert line.startswith(expected)


def test_a_server_without_tls_is_not_spoken_to(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_answer_in_plain_text, args=(listener,), daemon=True).start()
        line = _error_of(site, listener.getsockname()[1], site.ca)
    assert line.startswith("TransportError: --server: must speak TLS")


def _answer_in_plain_text(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_node_waits_for_an_absent_server_and_gives_up_in_time(site: Site, free_port: int) -> None:
    start = time.monotonic()
    line = _error_of(site, free_port, site.ca, max_wait_s=0.5)
    assert 0.5 <= time.monotonic() - start < PROMPT_S
    assert line.startswith(f"TransportError: --server: must answer within 0.5 s, but 127.0.0.1:{free_port} did not")


def test_a_node_answers_no_other_application(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink, "MARKER_FAB_ID", "someone/else")
    with site.superlink() as server, site.node_thread("alice", server.port, ClientApp()):
        message = Message(site.floats(1), _wait_for_node(site, server), "train")
        (reply,) = server.grid.send_and_receive([message], timeout=10)
    assert reply.error.code == INVALID_FAB
    assert reply.error.reason == "fab_id: must be 'agfl/agfl-marker', got 'someone/else'"


def test_a_killed_node_returns_and_what_it_lost_is_reported_at_once(site: Site) -> None:
    with site.superlink() as server:
        with site.node_process("alice", server.port) as process:
            node_id = _wait_for_node(site, server)
            (lost,) = server.grid.push_messages([Message(site.floats(1), node_id, "train.slowly")])
            site.wait_until(lambda: lost not in server._state.object_store)  # the node has it whole
            process.send_signal(signal.SIGKILL)
            process.wait(5)
        with site.node_process("alice", server.port):
            replies: list[Message] = []

            def arrived() -> bool:
                replies.extend(server.grid.pull_messages([lost]))
                return bool(replies)

            site.wait_until(arrived)
            assert replies[0].error.code == MESSAGE_UNAVAILABLE
            (reply,) = server.grid.send_and_receive([Message(site.floats(1), node_id, "train")], timeout=20)
            assert reply.has_content()
            assert reply.metadata.src_node_id == node_id


def test_a_node_finds_a_restarted_server(site: Site, free_port: int) -> None:
    with site.node_process("alice", free_port) as process:
        for _ in range(2):
            with site.superlink(free_port) as server:
                message = Message(site.floats(1), _wait_for_node(site, server), "train")
                (reply,) = server.grid.send_and_receive([message], timeout=20)
                # A new server is a new run: the node's context starts afresh.
                assert reply.content["node"]["count"] == 1
        assert process.poll() is None


def test_a_node_that_was_busy_while_the_server_restarted_serves_the_new_run(site: Site, free_port: int) -> None:
    busy, go_on = threading.Event(), threading.Event()
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        busy.set()
        go_on.wait(20)
        return Message(message.content, reply_to=message)

    with site.superlink(free_port) as server, site.node_thread("alice", free_port, app):
        server.grid.push_messages([Message(site.floats(1), _wait_for_node(site, server), "train")])
        assert busy.wait(20)
        server.__exit__(None, None, None)
        with site.superlink(free_port) as again:
            go_on.set()  # the reply is one to a run that this server does not know
            message = Message(site.floats(1), _wait_for_node(site, again), "train")
            (reply,) = again.grid.send_and_receive([message], timeout=20)
            assert reply.has_content()


def test_a_finished_node_does_not_wait_for_a_server_that_has_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernode, "LAST_REPLY_S", 0.3)
    finished = threading.Event()
    app = ClientApp()

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        finished.set()
        server.__exit__(None, None, None)
        return Message(message.content, reply_to=message)

    def send() -> None:
        server.grid.push_messages([Message(site.floats(1), _wait_for_node(site, server), "query.finish")])

    server = site.superlink()
    with server:
        threading.Thread(target=send).start()
        run_node(
            f"127.0.0.1:{server.port}",
            site.ca,
            keys.load(site.keys("alice")).transport,
            app,
            stop=threading.Event(),
            finished=finished.is_set,
            max_wait_s=60,
        )
    assert finished.is_set()


def test_stop_ends_a_node_promptly_idle_or_without_server(site: Site, free_port: int) -> None:
    with site.superlink(free_port) as server, site.node_thread("alice", free_port, ClientApp()) as stop:
        _wait_for_node(site, server)
        stop.set()
        site.wait_until(lambda: _connected(server) == [], timeout_s=PROMPT_S)
    with site.node_thread("alice", free_port, ClientApp()):
        time.sleep(0.5)
        start = time.monotonic()
    assert time.monotonic() - start < PROMPT_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_node_promptly(number: signal.Signals, site: Site) -> None:
    with site.superlink() as server, site.node_process("alice", server.port) as process:
        # That the server knows the node is not enough: to take its leave the node must know its own id, too.
        assert any("connected to" in line for line in process.stderr)
        process.send_signal(number)
        _assert_interrupted(process)
        site.wait_until(lambda: _connected(server) == [], timeout_s=PROMPT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_node_without_server_promptly(number: signal.Signals, site: Site, free_port: int) -> None:
    with site.node_process("alice", free_port) as process:
        assert any("waiting up to 30 s" in line for line in process.stderr)
        process.send_signal(number)
        _assert_interrupted(process)


def test_a_signal_ends_a_node_whose_server_is_silent_promptly(site: Site) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, site.node_process("alice", listener.getsockname()[1]) as process:
        connection, _ = listener.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            _assert_interrupted(process)


def _assert_interrupted(process: Started) -> None:
    start = time.monotonic()
    assert process.wait(PROMPT_S) == 130
    assert time.monotonic() - start < PROMPT_S
    assert process.stderr.read().endswith("interrupted\n")


def test_an_unknown_key_cannot_register_itself(site: Site) -> None:
    from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = generate_private_key(SECP384R1())
    with site.superlink() as server, site.fleet_client(server.port, key) as client:
        request = RegisterNodeFleetRequest(public_key=public_key_to_bytes(key.public_key()))
        with pytest.raises(Exception, match="403 Forbidden"):
            client.RegisterNode(request)
