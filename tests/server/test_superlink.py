"""Our state and grid under hostile and failing nodes, and the parts of Flower (not public) that they stand on."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import flwr
import httpx
import pytest
from fastapi.routing import APIRoute
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink import main as flower_main
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient

from agfl_client import keys
from agfl_models.errors import TransportError
from agfl_server.aggregation.uploads import HEAD_DIVIDER, HEAD_END
from agfl_server.transport.gate import FLEET_CALLS
from agfl_server.transport.limits import Limits
from agfl_server.transport.objects.spool import Kept, Spool
from agfl_server.transport.superlink import EmbeddedSuperLink

if TYPE_CHECKING:
    from tests.server.conftest import Site

REPLY_UNAVAILABLE, MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE = 4, 3, 5


@dataclass
class RawNode:
    """A node without our loop: it makes each call when the test says so."""

    client: FleetHttpClient
    public_key: bytes
    node_id: int = 0

    def activate(self) -> None:
        request = fleet_pb2.ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=10)
        self.node_id = self.client.ActivateNode(request).node_id

    def leave(self) -> None:
        self.client.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=self.node_id))

    def poll(self) -> Message | None:
        request = fleet_pb2.PullMessagesRequest(node=Node(node_id=self.node_id))
        messages = self.client.PullMessages(request).messages_list
        return message_from_proto(messages[0]) if messages else None

    def confirm(self, message: Message) -> None:
        self.client.ConfirmMessageReceived(
            message_pb2.ConfirmMessageReceivedRequest(
                node=Node(node_id=self.node_id),
                run_id=message.metadata.run_id,
                message_object_id=message.metadata.message_id,
            )
        )

    def announce(self, reply: Message) -> fleet_pb2.PushMessagesResponse:
        """Make the first of the two steps of a reply: its metadata and the names of its objects."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        request = fleet_pb2.PushMessagesRequest(
            node=Node(node_id=self.node_id),
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
        )
        return self.client.PushMessages(request)

    def upload(self, reply: Message, response: fleet_pb2.PushMessagesResponse) -> None:
        """Make the second step."""
        for object_id, item in get_all_nested_objects(reply).items():
            if object_id in response.objects_to_push:
                self.push_object(reply.metadata.run_id, response.session_id, object_id, item.deflate())

    def push_object(self, run_id: int, session_id: str, object_id: str, content: bytes) -> None:
        request = message_pb2.PushObjectRequest(
            node=Node(node_id=self.node_id),
            run_id=run_id,
            session_id=session_id,
            object_id=object_id,
            object_content=content,
        )
        assert self.client.PushObject(request).stored


@pytest.fixture
def server(site: Site) -> Iterator[EmbeddedSuperLink]:
    with site.superlink() as server:
        yield server


def _raw_node(site: Site, server: EmbeddedSuperLink, name: str) -> RawNode:
    key = keys.load(site.keys(name)).transport
    node = RawNode(site.fleet_client(server.port, key), public_key_to_bytes(key.public_key()))
    node.activate()
    return node


@pytest.fixture
def alice(site: Site, server: EmbeddedSuperLink) -> Iterator[RawNode]:
    node = _raw_node(site, server, "alice")
    with node.client:
        yield node


def _send(site: Site, server: EmbeddedSuperLink, node: RawNode, ttl: float | None = None) -> tuple[str, Message]:
    (message_id,) = server.grid.push_messages([Message(site.floats(9), node.node_id, "train", ttl=ttl)])
    message = node.poll()
    assert message is not None
    assert message.metadata.message_id == message_id
    return message_id, message


def _pull(server: EmbeddedSuperLink, message_id: str) -> list[Message]:
    return list(server.grid.pull_messages([message_id]))


def test_names_are_those_of_the_registration(site: Site, server: EmbeddedSuperLink, alice: RawNode) -> None:
    assert server.registered_name(alice.node_id) == "alice"
    assert server.registered_name(alice.node_id + 1) is None


def test_a_message_to_an_unknown_node_has_no_id(site: Site, server: EmbeddedSuperLink) -> None:
    assert server.grid.push_messages([Message(site.floats(1), 12345, "train")]) == [""]
    assert len(server._state.object_store) == 0


def test_a_reply_is_handed_over_only_once_it_is_whole(site: Site, server: EmbeddedSuperLink, alice: RawNode) -> None:
    message_id, message = _send(site, server, alice)
    reply = Message(site.floats(9, seed=1), reply_to=message)
    response = alice.announce(reply)
    assert _pull(server, message_id) == []
    alice.upload(reply, response)
    (pulled,) = _pull(server, message_id)
    assert pulled.content["arrays"] == reply.content["arrays"]


def test_a_reply_counts_although_its_node_has_left(site: Site, server: EmbeddedSuperLink, alice: RawNode) -> None:
    message_id, message = _send(site, server, alice)
    reply = Message(site.floats(9, seed=1), reply_to=message)
    alice.upload(reply, alice.announce(reply))
    alice.leave()
    (pulled,) = _pull(server, message_id)
    assert pulled.has_content()


def test_a_node_that_leaves_without_reply_is_reported(site: Site, server: EmbeddedSuperLink, alice: RawNode) -> None:
    message_id, message = _send(site, server, alice)
    alice.announce(Message(site.floats(9, seed=1), reply_to=message))  # and no upload
    alice.leave()
    (pulled,) = _pull(server, message_id)
    assert pulled.error.code == NODE_UNAVAILABLE
    assert pulled.metadata.reply_to_message_id == message_id
    assert len(server._state.object_store) == 0


def test_a_message_that_was_not_fetched_whole_is_delivered_again(
    site: Site, server: EmbeddedSuperLink, alice: RawNode
) -> None:
    message_id, _ = _send(site, server, alice)
    assert alice.poll() is None
    alice.activate()
    again = alice.poll()
    assert again is not None
    assert again.metadata.message_id == message_id


@pytest.mark.parametrize("announced", [False, True])
def test_a_message_that_died_with_its_node_is_reported_when_the_node_returns(
    announced: bool, site: Site, server: EmbeddedSuperLink, alice: RawNode
) -> None:
    message_id, message = _send(site, server, alice)
    alice.confirm(message)
    if announced:
        alice.announce(Message(site.floats(9, seed=1), reply_to=message))
    assert _pull(server, message_id) == []
    alice.activate()
    (pulled,) = _pull(server, message_id)
    assert pulled.error.code == MESSAGE_UNAVAILABLE
    assert len(server._state.object_store) == 0


def test_a_message_past_its_ttl_is_forgotten_with_its_content(
    site: Site, server: EmbeddedSuperLink, alice: RawNode
) -> None:
    message_id, _ = _send(site, server, alice, ttl=0.3)
    time.sleep(0.4)
    assert alice.poll() is None
    assert len(server._state.object_store) == 0
    (pulled,) = _pull(server, message_id)
    assert pulled.error.code == MESSAGE_UNAVAILABLE


def test_a_node_cannot_reply_in_another_nodes_name(site: Site, server: EmbeddedSuperLink, alice: RawNode) -> None:
    mallory = _raw_node(site, server, "bob")
    message_id, message = _send(site, server, alice)
    with mallory.client, pytest.raises(httpx.HTTPStatusError, match="403"):
        mallory.announce(Message(site.floats(9, seed=1), reply_to=message))
    assert _pull(server, message_id) == []


def test_what_a_node_writes_into_its_replys_metadata_is_not_believed(
    site: Site, server: EmbeddedSuperLink, alice: RawNode
) -> None:
    message_id, message = _send(site, server, alice)
    reply = Message(site.floats(9, seed=1), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 777
    # The envelope tells the truth, or it would be refused; the object inside keeps the lie.
    tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    contents = {object_id: item.deflate() for object_id, item in objects.items()}
    reply.metadata.__dict__["_src_node_id"] = alice.node_id
    response = alice.client.PushMessages(
        fleet_pb2.PushMessagesRequest(
            node=Node(node_id=alice.node_id),
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree],
        )
    )
    for object_id, content in contents.items():
        alice.push_object(message.metadata.run_id, response.session_id, object_id, content)
    (pulled,) = _pull(server, message_id)
    assert pulled.metadata.src_node_id == alice.node_id
    assert pulled.metadata.reply_to_message_id == message_id


def test_a_disk_that_takes_no_reply_ends_the_run_and_is_no_fault_of_an_owner(
    site: Site, server: EmbeddedSuperLink, alice: RawNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id, message = _send(site, server, alice)
    reply = Message(site.floats(9, seed=1), reply_to=message)
    response = alice.announce(reply)

    def full(content: bytes) -> Kept:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(server._state.spool, "keep", full)
        with pytest.raises(AssertionError):
            alice.upload(reply, response)
    with pytest.raises(TransportError, match=r"must keep messages on their way, and does not: No space left.*-009\]"):
        _pull(server, message_id)


def test_a_slow_disk_holds_up_nobody_else(
    site: Site, server: EmbeddedSuperLink, alice: RawNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id, message = _send(site, server, alice)
    reply = Message(site.floats(9, seed=1), reply_to=message)
    response, genuine, writes, goes_on = alice.announce(reply), Spool.keep, threading.Event(), threading.Event()

    def slow(self: Spool, content: bytes) -> Kept:
        writes.set()
        assert goes_on.wait(30)
        return genuine(self, content)

    monkeypatch.setattr(Spool, "keep", slow)
    upload = threading.Thread(target=alice.upload, args=(reply, response))
    upload.start()
    assert writes.wait(30)
    assert server._state.lock.acquire(timeout=5), "the lock that every call needs is held while the disk writes"
    server._state.lock.release()
    goes_on.set()
    upload.join()
    (pulled,) = _pull(server, message_id)
    assert pulled.has_content()
    assert server._state.spool._used == 0


def test_a_malformed_reply_becomes_an_error_and_stops_nobody(
    site: Site, server: EmbeddedSuperLink, alice: RawNode
) -> None:
    message_id, message = _send(site, server, alice)
    garbage = b"Message  7\x00garbage"
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_message_id"] = get_object_id(garbage)
    response = alice.client.PushMessages(
        fleet_pb2.PushMessagesRequest(
            node=Node(node_id=alice.node_id),
            messages_list=[message_to_proto(reply)],
            message_object_trees=[message_pb2.ObjectTree(object_id=get_object_id(garbage))],
        )
    )
    alice.push_object(message.metadata.run_id, response.session_id, get_object_id(garbage), garbage)
    (pulled,) = _pull(server, message_id)
    assert pulled.error.code == REPLY_UNAVAILABLE
    assert str(pulled.error.reason).startswith("malformed reply: ")


@pytest.mark.parametrize("failed", [False, True])
def test_leaving_the_block_ends_the_run_and_frees_the_port(failed: bool, site: Site) -> None:
    server = site.superlink()
    try:
        with server:
            run_id, port = server.grid.run.run_id, server.port
            assert server.grid.run.status.status == "running"
            if failed:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert server._state.get_run_status({run_id})[run_id].sub_status == ("failed" if failed else "completed")
    with site.superlink(port) as again:
        assert again.port == port


# --- Contracts: what we use of Flower, so that an upgrade fails here and says why. ---


def _parameters(function: object) -> list[str]:
    assert callable(function)
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_contract_flower_is_the_version_that_was_read() -> None:
    assert flwr.__version__.startswith("1.41."), "read flwr's changes before you widen this"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("activate_node", ["node_id", "heartbeat_interval"]),
        ("claim_task", ["task_id"]),
        ("activate_task", ["task_id"]),
        ("finish_task", ["task_id", "sub_status", "details"]),
        ("cleanup_run", ["run_id"]),
        ("start_session", ["run_id"]),
        ("preregister_object_tree", ["object_tree", "session_id"]),
        ("store_object", ["run_id", "session_id", "object_id", "object_content"]),
        ("store_message_ins", ["message"]),
        ("get_message_res", ["message_ids", "run_id"]),
        ("delete_messages", ["message_ins_ids"]),
        ("get_nodes", ["run_id"]),
        ("_cleanup_expired_task_tokens_locked", []),
        ("acknowledge_node_heartbeat", ["node_id", "heartbeat_interval"]),
        ("store_message_and_object_tree", ["message", "object_tree", "session_id"]),
        ("store_message_res", ["message"]),
    ],
)
def test_contract_link_state_has_the_method(method: str, parameters: list[str]) -> None:
    assert _parameters(getattr(InMemoryLinkState, method)) == parameters, f"LinkState.{method} has changed"


def test_contract_create_run_and_create_node_take_what_we_give() -> None:
    expected = [
        "fab_id", "fab_version", "fab_hash", "override_config",
        "federation_id", "federation_config", "flwr_aid", "primary_task_type",
    ]  # fmt: skip
    assert _parameters(InMemoryLinkState.create_run)[:8] == expected, "LinkState.create_run has changed"
    names = _parameters(InMemoryLinkState.create_node)
    assert names[:4] == ["owner_aid", "owner_name", "public_key", "heartbeat_interval"]
    assert "name" in names


def test_contract_objects_have_the_form_that_we_check_before_flower_reads_them(site: Site) -> None:
    assert (HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER.encode()) == (HEAD_END, HEAD_DIVIDER)
    array = site.floats(3).array_records["arrays"]["x"]
    (chunk_id,) = array.children or {}
    head, _, body = array.deflate().partition(HEAD_END)
    assert head == f"Array {chunk_id} {len(body)}".encode()
    assert json.loads(body)["arraychunk_ids"] == [0]
    assert Limits().object_bytes > FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 2**10


def test_contract_the_calls_name_their_node() -> None:
    assert "node_id" in fleet_pb2.DeactivateNodeRequest.DESCRIPTOR.fields_by_name
    assert "node_id" in Node.DESCRIPTOR.fields_by_name
    for request in (
        fleet_pb2.PullMessagesRequest,
        fleet_pb2.PushMessagesRequest,
        heartbeat_pb2.SendNodeHeartbeatRequest,
        run_pb2.GetRunRequest,
        message_pb2.PushObjectRequest,
        message_pb2.PullObjectRequest,
        message_pb2.ConfirmMessageReceivedRequest,
    ):
        assert "node" in request.DESCRIPTOR.fields_by_name


def test_contract_link_state_has_the_attributes() -> None:
    state = InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    for name in ("lock", "_lock_object_push_sessions", "message_ins_store", "message_res_store"):
        assert hasattr(state, name), f"LinkState.{name} is gone"
    assert state.message_ins_id_to_message_res_id == {}
    assert type(state.lock) is type(state._lock_object_push_sessions), "one lock cannot stand for both"
    assert InMemoryCoreState._cleanup_expired_task_tokens_locked is not None


def test_contract_flower_still_refuses_a_node_that_it_believes_online() -> None:
    state = InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    node_id = state.create_node("aid", "name", b"key", 10)
    assert state.activate_node(node_id, 10)
    assert not state.activate_node(node_id, 10), "our activate_node may be needed no more"


def test_contract_flower_orders_its_middleware_as_we_do() -> None:
    names = [str(middleware) for middleware in flower_main._get_middleware()]
    places = [
        next(i for i, name in enumerate(names) if part in name)
        for part in ("http_error_translator", "ProtobufTranslationMiddleware", "NodeAuthMiddleware")
    ]
    assert places == sorted(places), "Flower's middleware has another order"


def test_contract_the_fleet_api_has_no_call_that_we_have_not_judged() -> None:
    paths = {route.path for route in fleet_router.routes if isinstance(route, APIRoute)}
    closed = {f"/v1/fleet/{call}" for call in ("register-node", "unregister-node", "get-fab")}
    assert paths == FLEET_CALLS | closed
