"""A node's call for its next message waits for it, and gets it only where the node that made the call still reads."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from tests.server.conftest import Site

    from agfl_server.transport.superlink import EmbeddedSuperLink


class Caller:
    """A node that only activates and pulls, at the test's word."""

    def __init__(self, site: Site, server: EmbeddedSuperLink) -> None:
        from agfl_client import keys

        self.site, self.server = site, server
        self.key = keys.load(site.keys("alice")).transport
        self.api: FleetHttpClient = site.fleet_client(server.port, self.key)
        self.node = self.activate()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_error: object) -> None:
        self.api.close()

    def activate(self) -> Any:
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.proto.node_pb2 import Node
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        request = ActivateNodeRequest(public_key=public_key_to_bytes(self.key.public_key()), heartbeat_interval=30)
        return Node(node_id=self.api.ActivateNode(request).node_id)

    def pull(self) -> int:
        """Return how many messages came."""
        from flwr.proto.fleet_pb2 import PullMessagesRequest

        return len(self.api.PullMessages(PullMessagesRequest(node=self.node)).messages_list)

    def send(self) -> None:
        from flwr.app import Message

        list(self.server.grid.push_messages([Message(self.site.floats(1), self.node.node_id, "train")]))

    def wait_until_held(self) -> None:
        self.site.wait_until(lambda: bool(self.server._state.arrivals._waiting))


def test_a_call_waits_for_the_message_and_no_longer_than_a_second(site: Site) -> None:
    with site.superlink() as server, Caller(site, server) as caller:
        came = list[tuple[int, float]]()

        def pull() -> None:
            count = caller.pull()
            came.append((count, time.monotonic()))

        started = time.monotonic()
        assert caller.pull() == 0
        assert 0.9 < time.monotonic() - started < 5
        thread = threading.Thread(target=pull)
        thread.start()
        caller.wait_until_held()
        sent_at = time.monotonic()
        caller.send()
        thread.join(10)
        ((count, came_at),) = came
        assert count == 1
        assert came_at - sent_at < 0.7  # it did not sit out the second
        caller.send()
        started = time.monotonic()
        assert caller.pull() == 1
        assert time.monotonic() - started < 0.7
        assert not server._state.arrivals._waiting


@pytest.mark.parametrize("leaves", ["closes the connection", "comes anew"])
def test_attack_a_call_that_nobody_reads_takes_no_message_with_it(leaves: str, site: Site) -> None:
    """Of a process that was killed, with or without a word from its system, before the next one of the node came."""
    with site.superlink() as server, Caller(site, server) as caller, stale_call(caller) as connection:
        caller.wait_until_held()
        if leaves == "comes anew":
            caller.activate()
        else:
            connection.close()
        site.wait_until(lambda: not server._state.arrivals._waiting, timeout_s=0.7)
        caller.send()
        assert caller.pull() == 1


def test_a_server_that_ends_lets_nobody_wait(site: Site) -> None:
    with site.superlink() as server, Caller(site, server) as caller, stale_call(caller):
        caller.wait_until_held()
        server._state.arrivals.close()
        site.wait_until(lambda: not server._state.arrivals._waiting, timeout_s=0.7)
        started = time.monotonic()
        caller.pull()
        assert time.monotonic() - started < 0.7


def stale_call(caller: Caller) -> ssl.SSLSocket:
    """Return a connection on which a call waits whose answer nobody reads."""
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

    from agfl_protocol.identity.request_signature import NONCE_BYTES, SIGNATURE_HEADER, sign_request

    body, path = PullMessagesRequest(node=caller.node).SerializeToString(), "/v1/fleet/pull-messages"
    signature = sign_request(caller.key, "POST", path, body, time.time_ns(), bytes(NONCE_BYTES))
    connection = ssl.create_default_context(cafile=str(caller.site.ca)).wrap_socket(
        socket.create_connection(("127.0.0.1", caller.server.port)), server_hostname="127.0.0.1"
    )
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n"
    head += f"{SIGNATURE_HEADER}: {signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection
