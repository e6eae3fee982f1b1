"""The kinds of hostile requests that hostile_requests.py draws from: of strangers, and of a registered owner."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from hostile_calls import FLEET, Caller

CALLS = ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run",
         "push-object", "pull-object", "confirm-message-received")  # fmt: skip
Tree = message_pb2.ObjectTree


class Serializable(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...


def _head(path: str, length: int | str, extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


def idle_tcp(caller: Caller, rng: random.Random) -> None:
    caller.hold(caller.peer.tcp())


def idle_tls(caller: Caller, rng: random.Random) -> None:
    caller.hold(caller.peer.connect())


def half_a_header(caller: Caller, rng: random.Random) -> None:
    connection = caller.peer.connect()
    connection.sendall(_head(FLEET + rng.choice(CALLS), 5)[: rng.randrange(1, 60)])
    caller.hold(connection)


def garbage(caller: Caller, rng: random.Random) -> None:
    with caller.peer.tcp() as connection:
        connection.sendall(rng.randbytes(rng.randrange(1, 4000)))
        caller.count("garbage")


def garbage_in_tls(caller: Caller, rng: random.Random) -> None:
    caller.send(rng.randbytes(rng.randrange(1, 4000)) + b"\r\n\r\n")


def any_path(caller: Caller, rng: random.Random) -> None:
    path = "/" + "".join(rng.choice("abc/.%-_?0123") for _ in range(rng.randrange(200)))
    caller.send(_head(path, 0))


def no_signature(caller: Caller, rng: random.Random) -> None:
    body = rng.randbytes(rng.randrange(300))
    caller.send(_head(FLEET + rng.choice(CALLS), len(body), "Content-Type: application/protobuf\r\n") + body)


def large_body(caller: Caller, rng: random.Random) -> None:
    length = rng.choice([10**5, 10**6, 6 * 10**7])
    head = _head(FLEET + rng.choice(CALLS), length, "Content-Type: application/protobuf\r\n")
    connection = caller.peer.connect()
    with suppress(OSError):
        connection.sendall(head + bytes(min(length - 1, 10**6)))
    caller.hold(connection)


def large_header(caller: Caller, rng: random.Random) -> None:
    caller.send(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * rng.choice([10**4, 10**5, 4 * 10**6]) + b"\r\n\r\n")


def many_headers(caller: Caller, rng: random.Random) -> None:
    lines = b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(rng.randrange(1, 4000)))
    caller.send(b"GET /health HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")


def smuggled(caller: Caller, rng: random.Random) -> None:
    coding = rng.choice(["chunked", "gzip", "identity", "Chunked, chunked"])
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    caller.send(_head(FLEET + "push-object", 4, f"Transfer-Encoding: {coding}\r\n") + chunk * 8)


def long_content_type(caller: Caller, rng: random.Random) -> None:
    caller.send(_head(FLEET + rng.choice(CALLS), 0, f"Content-Type: {'x' * rng.choice([10**4, 5 * 10**5])}\r\n"))


def in_a_row(caller: Caller, rng: random.Random) -> None:
    caller.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * rng.randrange(2, 500))


def any_body(caller: Caller, rng: random.Random) -> None:
    caller.send_signed(rng.choice(CALLS), rng.randbytes(rng.randrange(2000)))


def promise(caller: Caller, rng: random.Random) -> None:
    interval_s = rng.choice([0.0, -1.0, 30.0, 1800.0, 1e300, float("nan"), float("inf")])
    request = heartbeat_pb2.SendNodeHeartbeatRequest(node=caller.node, heartbeat_interval=interval_s)
    caller.send_signed("send-node-heartbeat", request.SerializeToString())


def activate(caller: Caller, rng: random.Random) -> None:
    caller.send_signed("activate-node", caller.activation(rng.choice([30.0, 1800.0])))


def tree(caller: Caller, rng: random.Random) -> None:
    """Answer what is there with a knot, a chain or a crowd of objects."""
    ids = [rng.randbytes(32).hex() for _ in range(90)]
    found = Tree(object_id=ids[0])
    for i in range(1, rng.choice([5, 30, 89])):
        twin = [Tree(object_id=ids[i - 1])] if rng.random() < 0.5 else []
        found = Tree(object_id=ids[i], children=[found, *twin])
    if rng.random() < 0.3:
        found = Tree(object_id=ids[0], children=[Tree(object_id=rng.randbytes(32).hex()) for _ in range(2000)])
    _reply(caller, rng, found)


def _reply(caller: Caller, rng: random.Random, found: Tree) -> fleet_pb2.PushMessagesResponse:
    pulled = fleet_pb2.PullMessagesResponse()
    pull = fleet_pb2.PullMessagesRequest(node=caller.node).SerializeToString()
    with suppress(Exception):
        pulled.ParseFromString(caller.send_signed("pull-messages", pull).partition(b"\r\n\r\n")[2])
    request = fleet_pb2.PushMessagesRequest(
        node=caller.node, message_object_trees=[found] * rng.choice([1, 1, 1, 0, 3])
    )
    for _ in range(rng.choice([1, 1, 1, 0, 40])):
        message = request.messages_list.add()
        metadata = message.metadata
        if pulled.messages_list:
            metadata.CopyFrom(pulled.messages_list[0].metadata)
            metadata.reply_to_message_id, metadata.dst_node_id = metadata.message_id, metadata.src_node_id
        metadata.src_node_id = caller.node_id
        metadata.message_id = found.object_id
        metadata.ttl = 60.0
        metadata.created_at = time.time()
    answer = caller.send_signed("push-messages", request.SerializeToString())
    response = fleet_pb2.PushMessagesResponse()
    with suppress(Exception):
        response.ParseFromString(answer.partition(b"\r\n\r\n")[2])
    return response


def upload(caller: Caller, rng: random.Random) -> None:
    """Announce objects and send much of them, or send what nobody has announced."""
    size = rng.choice([100, 10**5, 5 * 2**20, 8 * 2**20])
    found = Tree(object_id=rng.randbytes(32).hex(), children=[Tree(object_id=rng.randbytes(32).hex())])
    session = _reply(caller, rng, found).session_id if rng.random() < 0.5 else rng.choice(["", "x" * 36])
    request = message_pb2.PushObjectRequest(
        node=caller.node, run_id=rng.randrange(2**63), session_id=session, object_id=found.object_id,
        object_content=b"ArrayChunk " + b"," * size,
    )  # fmt: skip
    caller.send_signed("push-object", request.SerializeToString())


def slow_body(caller: Caller, rng: random.Random) -> None:
    request = caller.signed("push-messages", rng.randbytes(1000))
    connection = caller.peer.connect()
    connection.sendall(request[: -rng.randrange(1, 1000)])
    caller.hold(connection)


def huge_signed(caller: Caller, rng: random.Random) -> None:
    connection = caller.peer.connect()
    with suppress(OSError):
        connection.sendall(caller.signed("push-object", bytes(10**6), length=6 * 10**7))
    caller.hold(connection)


def recorded(caller: Caller, rng: random.Random) -> None:
    caller.send(rng.choice(caller.recorded))


def changed(caller: Caller, rng: random.Random) -> None:
    request = bytearray(rng.choice(caller.recorded))
    for _ in range(rng.randrange(1, 5)):
        request[rng.randrange(len(request))] = rng.randrange(256)
    caller.send(bytes(request))


def not_its_own(caller: Caller, rng: random.Random) -> None:
    name = rng.randbytes(32).hex()
    requests: list[tuple[str, Serializable]] = [
        ("pull-object", message_pb2.PullObjectRequest(node=caller.node, run_id=1, object_id=name)),
        (
            "confirm-message-received",
            message_pb2.ConfirmMessageReceivedRequest(node=caller.node, message_object_id=name),
        ),
        ("deactivate-node", fleet_pb2.DeactivateNodeRequest(node_id=rng.randrange(2**63))),
        ("pull-messages", fleet_pb2.PullMessagesRequest(node=Node(node_id=rng.randrange(2**63)))),
    ]
    call, request = rng.choice(requests)
    caller.send_signed(call, request.SerializeToString())


def signed_long_type(caller: Caller, rng: random.Random) -> None:
    caller.send(caller.signed("get-run", b"", content_type="x" * rng.choice([10**4, 2 * 10**4, 10**5])))


Kind = Callable[[Caller, random.Random], None]
UNSIGNED: list[Kind] = [
    idle_tcp, idle_tls, half_a_header, garbage, garbage_in_tls, any_path, no_signature, large_body, large_header,
    many_headers, smuggled, long_content_type, in_a_row,
]  # fmt: skip
SIGNED: list[Kind] = [
    any_body, promise, activate, tree, upload, slow_body, huge_signed, recorded, changed, not_its_own, signed_long_type,
]  # fmt: skip
