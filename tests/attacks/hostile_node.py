"""A registered owner's key in hostile hands: it makes each call of Flower's Fleet API when the test says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from tests.server.conftest import Site

from agfl_client import keys
from agfl_server.transport.limits import SMALL_REPLY_BYTES, push
from agfl_server.transport.superlink import EmbeddedSuperLink

Tree = message_pb2.ObjectTree
Objects = dict[str, bytes]


@dataclass
class HostileNode:
    """An owner's node without our loop."""

    server: EmbeddedSuperLink
    client: FleetHttpClient
    node_id: int

    @property
    def node(self) -> Node:
        return Node(node_id=self.node_id)

    def receive(self, content: RecordDict, max_reply_bytes: int = SMALL_REPLY_BYTES) -> Message:
        """Have the server send this node a message; return it."""
        push(self.server.grid, [Message(content, self.node_id, "train")], max_reply_bytes)
        return self.poll()

    def poll(self) -> Message:
        """Ask for a message, which there must be."""
        found = self.client.PullMessages(fleet_pb2.PullMessagesRequest(node=self.node)).messages_list
        return message_from_proto(found[0])

    def activate_as(self, other: HostileNode) -> None:
        """Come online with another's public key."""
        key = next(
            key for key, node_id in self.server._state.node_public_key_to_node_id.items() if node_id == other.node_id
        )
        self.client.ActivateNode(fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30))

    def announce(self, reply: Message, tree: Tree | None = None, root: str = "") -> fleet_pb2.PushMessagesResponse:
        """Say which objects a reply consists of: the true ones, or those of `tree`."""
        reply.metadata.__dict__["_message_id"] = root or reply.object_id
        envelope = message_to_proto(remove_content_from_message(reply))
        return self.announce_all([envelope], [tree or get_object_tree(reply)])

    def announce_all(self, envelopes: Sequence[object], trees: Sequence[Tree]) -> fleet_pb2.PushMessagesResponse:
        """Send any envelopes with any trees."""
        request = fleet_pb2.PushMessagesRequest(node=self.node, message_object_trees=trees)
        request.messages_list.extend(envelopes)
        return self.client.PushMessages(request)

    def upload(self, run_id: int, session_id: str, objects: Objects) -> list[bool]:
        """Send objects; return which of them were taken."""
        requests = [
            message_pb2.PushObjectRequest(
                node=self.node, run_id=run_id, session_id=session_id, object_id=object_id, object_content=content
            )
            for object_id, content in objects.items()
        ]
        return [self.client.PushObject(request).stored for request in requests]

    def pull(self, run_id: int, object_id: str) -> bool:
        """Ask for an object; return whether there is one."""
        request = message_pb2.PullObjectRequest(node=self.node, run_id=run_id, object_id=object_id)
        return self.client.PullObject(request).object_found

    def confirm(self, run_id: int, message_id: str) -> None:
        """Say that a message has been received, upon which the server drops its content."""
        self.client.ConfirmMessageReceived(
            message_pb2.ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=message_id)
        )

    def beat(self, interval_s: float) -> None:
        """Promise the next sign of life within `interval_s`."""
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=interval_s)
        self.client.SendNodeHeartbeat(request)


@contextmanager
def hostile_node(site: Site, server: EmbeddedSuperLink, name: str) -> Iterator[HostileNode]:
    """Come online under an owner's key."""
    key = keys.load(site.keys(name)).transport
    with site.fleet_client(server.port, key) as client:
        public_key = public_key_to_bytes(key.public_key())
        request = fleet_pb2.ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)
        yield HostileNode(server, client, client.ActivateNode(request).node_id)


def objects_of(reply: Message) -> Objects:
    """Return all that a true reply consists of, by name."""
    return {object_id: item.deflate() for object_id, item in get_all_nested_objects(reply).items()}


def forged(kind: str, children: Sequence[str], body: bytes) -> tuple[str, bytes]:
    """Return the name and the content of an object that says anything."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return get_object_id(content), content
