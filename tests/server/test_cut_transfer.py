"""A connection that is cut in the middle of a transfer costs the piece that was on it, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from tests.server.conftest import Site

    from agfl_server.transport.superlink import EmbeddedSuperLink

SIZE = 6 * 2**20  # numbers, 24 MiB
PIECE = 5 * 2**20  # bytes
SLACK = 2**18  # of TLS, headers, polls and heartbeats


@dataclass
class Cutter:
    """Passes bytes on to a server; whichever connection carries byte `at` of `direction` is cut there, once."""

    port: int
    at: int
    direction: str
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    cuts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Yield the port that leads to the server."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield int(listener.getsockname()[1])
            listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                node = listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            for name, source, sink in (("up", node, server), ("down", server, node)):
                threading.Thread(target=self._pump, args=(name, source, sink), daemon=True).start()

    def _pump(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(2**14):
                with self.lock:
                    self.passed[name] += len(data)
                    is_cut = not self.cuts and name == self.direction and self.passed[name] >= self.at
                    self.cuts += is_cut
                if is_cut:
                    for one in (source, sink):
                        one.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)


def echo() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


def exchanged(site: Site, server: EmbeddedSuperLink, content: RecordDict) -> Message:
    """Send a message to the only node, which sends it back."""
    site.wait_until(lambda: bool(list(server.grid.get_node_ids())))
    (node,) = server.grid.get_node_ids()
    (sent,) = server.grid.push_bounded([Message(content, node, "train")], 2**26)  # type: ignore[attr-defined]
    replies: list[Message] = []

    def has_come() -> bool:
        replies.extend(server.grid.pull_messages([sent]))
        return bool(replies)

    site.wait_until(has_come, 60)
    return replies[0]


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_cut_costs_at_most_one_piece(site: Site, direction: str) -> None:
    content = site.floats(SIZE)
    data = content.array_records["arrays"]["x"].data
    with site.superlink() as server:
        cutter = Cutter(server.port, 12 * 2**20, direction)
        with cutter.listening() as port, site.node_thread("alice", port, echo()):
            reply = exchanged(site, server, content)
    assert reply.content.array_records["arrays"]["x"].data == data
    assert cutter.cuts == 1
    other = "up" if direction == "down" else "down"
    assert len(data) < cutter.passed[direction] < len(data) + PIECE + SLACK
    assert len(data) < cutter.passed[other] < len(data) + SLACK
