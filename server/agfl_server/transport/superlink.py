"""Flower's SuperLink inside our process: its Fleet API on one TLS port, its state in memory.

Of Flower's three HTTP APIs only the one that nodes speak, the Fleet API, is built in.
The only server file that imports Flower modules that are not public (flwr 1.41); what is used of each is held
fast by tests/server/test_superlink.py.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from fastapi import FastAPI
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_children_ids_from_object_content,
    get_object_tree,
    get_object_type_from_object_content,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.routers import health
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from agfl_models.errors import TransportError
from agfl_protocol.identity.identity import MARKER_FAB_ID, PublicIdentity
from agfl_protocol.identity.request_signature import key_id
from agfl_protocol.messages.array_bytes import joined
from agfl_server.aggregation.uploads import ReplyRefused, Upload, Uploads, new_session_id
from agfl_server.transport.gate import KEY_ID, Gate
from agfl_server.transport.https import HttpsServer
from agfl_server.transport.limits import SMALL_REPLY_BYTES, Limits
from agfl_server.transport.log_limits import one_line
from agfl_server.transport.one_process import OneProcess
from agfl_server.transport.spool import Kept, Spool, size_of

POLL_S = 0.05
_MAX_HEARTBEAT_S = 30.0  # a node is held online for twice as long as it promises


class EmbeddedSuperLink:
    """Serve the registered nodes, and only them, from `__enter__` to `__exit__`; the block is the run.

    Leaving it marks the run completed (or failed, on an exception) and frees the port.
    spool: the folder whose disk holds the large messages that are on their way; None for the system's own.

    Raises (on entry):
        TransportError, IdentityError: as `HttpsServer`.
    """

    def __init__(
        self,
        nodes: Sequence[PublicIdentity],
        *,
        certificate: Path,
        key: Path,
        host: str = "127.0.0.1",
        port: int = 8443,
        limits: Limits | None = None,
        spool: Path | None = None,
    ) -> None:
        self._state = _LinkState(Spool(spool))
        self._names: dict[int, str] = {}
        callers: dict[str, _Caller] = {}
        for node in nodes:
            public_key = public_key_to_bytes(node.transport_public_key)
            node_id = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0, name=node.name)
            self._names[node_id] = node.name
            callers[key_id(node.transport_public_key)] = _Caller(node_id, public_key)
        gate = Gate(
            OneProcess(
                _fleet_app(self._state, callers), {key_id(node.transport_public_key): node.name for node in nodes}
            ),
            {key_id(node.transport_public_key): node.transport_public_key for node in nodes},
            lambda name, num_bytes: self._state.admits(callers[name].node_id, num_bytes),
            limits,
        )
        self._https = HttpsServer(gate, host, port, certificate, key, limits)

    @property
    def grid(self) -> Grid:
        """The way to the nodes; valid inside the block."""
        return self._grid

    @property
    def port(self) -> int:
        """The port listened on, also where port 0 asked for any free one; valid inside the block."""
        return self._https.port

    def online_names(self) -> list[str]:
        """Return the names of the nodes that are connected now; none outside the block."""
        run_id = getattr(self, "_run_id", None)
        return [] if run_id is None else [self._names[n] for n in self._state.get_nodes(run_id) if n in self._names]

    def registered_name(self, node_id: int) -> str | None:
        """Return the name under which the operator registered the node, or None if it is unknown."""
        return self._names.get(node_id)

    def __enter__(self) -> EmbeddedSuperLink:
        """Listen, and start the run."""
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._https.__enter__()
        self._run_id, self._task_id = _start_run(self._state)
        self._grid = _LinkStateGrid(self._state, self._run_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run and free the port."""
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # each call that still comes is an error to it
        status, details = (SubStatus.COMPLETED, "") if kind is None else (SubStatus.FAILED, kind.__name__)
        self._state.finish_task(self._task_id, status, details)
        self._https.__exit__(kind, error, trace)
        self._state.cleanup_run(self._run_id)
        self._state.spool.close()


@dataclass(frozen=True)
class _Caller:
    """Who a registered key stands for."""

    node_id: int
    public_key: bytes


class _LinkState(InMemoryLinkState):
    """Flower's state, for nodes that may die and return at once and for a run that lives in this process.

    What the server sends is in Flower's object store, what nodes send in `uploads`.
    """

    def __init__(self, spool: Spool) -> None:
        super().__init__(NoOpFederationManager(), _SentObjects(spool))
        self.spool = spool
        # Flower takes these two locks in either order: an upload that expired could stop the server for good.
        self.lock = self._lock_object_push_sessions = threading.RLock()
        self.uploads = Uploads(spool)
        self.disk_failure: OSError | None = None
        self._sent_objects: dict[str, frozenset[str]] = {}

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        # Flower turns away a node that it believes online: one killed and restarted would wait for a minute.
        with self.lock:
            self.deactivate_node(node_id)
            self._settle_unanswered(node_id)
            return super().activate_node(node_id, min(heartbeat_interval, _MAX_HEARTBEAT_S))

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        return super().acknowledge_node_heartbeat(node_id, min(heartbeat_interval, _MAX_HEARTBEAT_S))

    def _settle_unanswered(self, node_id: int) -> None:
        """Deliver again what a returning node had not fetched whole; the rest is lost, and reported so."""
        lost = set()
        for message_id, message in self.message_ins_store.items():
            if message.metadata.dst_node_id != node_id or self.complete_reply(message_id) is not None:
                continue
            if message_id in self.object_store and message_id not in self.message_ins_id_to_message_res_id:
                message.metadata.delivered_at = ""
            else:
                lost.add(message_id)
        self.delete_messages(lost)

    def send(self, message: Message, run_id: int, max_reply_bytes: int) -> str:
        """Store a message with its content, and expect a reply; return its id, or "" where its node is unknown."""
        message_id = message.object_id
        message.metadata.__dict__["_message_id"] = message_id
        objects = get_all_nested_objects(message)
        session = super().start_session(run_id)
        for object_id in dict.fromkeys(self.preregister_object_tree(get_object_tree(message), session)):
            try:
                stored = super().store_object(run_id, session, object_id, objects[object_id].deflate())
            except OSError as error:
                raise _disk_failed(self.spool, error) from None
            assert stored
        with self.lock:
            # Last, so that a node that sees the message finds all its objects and never sits out a 1 s backoff.
            if self.store_message_ins(remove_content_from_message(message)) is None:
                self.object_store.delete(message_id)
                return ""
            self._sent_objects[message_id] = frozenset(objects)
            self.uploads.expect(message_id, message.metadata.dst_node_id, max_reply_bytes)
        return message_id

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        # Flower keeps the content until the run ends: one model for each straggler in each round.
        with self.lock:
            super().delete_messages(message_ins_ids)
            self.uploads.forget(message_ins_ids)
            for message_id in message_ins_ids:
                self._sent_objects.pop(message_id, None)
                self.object_store.delete(message_id)

    def start_session(self, run_id: int) -> str:
        # Flower would keep one for each call of a node, whether anything comes of it or not.
        return new_session_id()

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        metadata = message.metadata
        with self.lock:
            # The first, so that whoever comes too late, or invents it, fills no log.
            if self.uploads.of(metadata.reply_to_message_id) is None or self.store_message_res(message) is None:
                return False, []
            try:
                return True, self.uploads.announce(
                    metadata.reply_to_message_id, session_id, metadata.message_id, object_tree
                )
            except ReplyRefused:
                return False, []

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        with self.lock:
            if not self.uploads.wants(session_id, object_id):
                return False
        try:
            kept = self.spool.keep(object_content)  # without the lock: a slow disk would hold up every node
        except OSError as error:
            self.disk_failure = error  # ends the run: nobody's reply is refused for it
            return False
        with self.lock:
            is_taken = self.uploads.take(session_id, object_id, object_content, kept)
        if not is_taken:
            self.spool.drop(kept)
        return is_taken

    def admits(self, node_id: int, num_bytes: int) -> bool:
        """Return whether a node may still upload so much."""
        with self.lock:
            return self.uploads.admits(node_id, num_bytes)

    def complete_reply(self, message_id: str) -> _Reply | None:
        """Return the reply to a message, or None while any part of it is missing."""
        with self.lock:
            instruction, upload = self.message_ins_store.get(message_id), self.uploads.of(message_id)
            if instruction is None or upload is None or not (upload.is_complete or upload.fault):
                return None
            return _Reply(instruction, upload, self.spool)

    def may_read(self, node_id: int, object_id: str) -> bool:
        """Return whether an object belongs to a message that was sent to the node."""
        with self.lock:
            return any(
                object_id in objects and self._is_addressed_to(node_id, message_id)
                for message_id, objects in self._sent_objects.items()
            )

    def may_drop(self, node_id: int, object_id: str) -> bool:
        """Return whether an object is a message to the node, or not there (any more)."""
        with self.lock:
            return object_id not in self.object_store or self._is_addressed_to(node_id, object_id)

    def _is_addressed_to(self, node_id: int, message_id: str) -> bool:
        message = self.message_ins_store.get(message_id)
        return message is not None and message.metadata.dst_node_id == node_id

    def _cleanup_expired_task_tokens_locked(self) -> None:
        # Flower fails a run whose process has been silent for a minute. Ours is this process.
        pass


class _SentObjects(InMemoryObjectStore):
    """Flower's object store, whose large objects are in a spool: each once, for all nodes that it is sent to."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self._spool = spool
        self._places: dict[str, Kept] = {}

    def put(self, object_id: str, object_content: bytes) -> None:
        super().put(object_id, object_content)
        with self.lock_store:
            if object_id not in self._places:
                self._places[object_id] = self._spool.keep(object_content)
                self.store[object_id].content = b""

    def get(self, object_id: str) -> bytes | None:
        with self.lock_store:
            kept = self._places.get(object_id)
            return super().get(object_id) if kept is None else self._spool.read(kept)

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            super().delete(object_id)  # which deletes the parts by this method
            if object_id not in self.store and (kept := self._places.pop(object_id, None)) is not None:
                self._spool.drop(kept)


@dataclass(frozen=True)
class _Reply:
    instruction: Message
    upload: Upload
    spool: Spool

    def inflate(self) -> Message:
        """Return the reply; its metadata come from our instruction, since a node may write there anything."""
        upload = self.upload
        try:
            arrays = {} if upload.fault else self._arrays()
            if upload.fault or sum(self._array_bytes(content) for content in arrays.values()) > upload.max_bytes:
                fault = f"reply: must have at most {upload.max_bytes} bytes, got more in repeated parts"
                return self._error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, upload.fault or fault)
            found: dict[str, InflatableObject] = {
                object_id: joined(content, self._read) for object_id, content in arrays.items()
            }
            pieces = {piece for object_id in arrays for piece in upload.children[object_id]}
            others = {object_id: self._read(object_id) for object_id in upload.contents if object_id not in pieces}
            reply = inflate_object_from_contents(upload.root, others, objects=found)
            assert isinstance(reply, Message)
            if reply.has_error():
                return self._error(reply.error.code, reply.error.reason or "")
            return Message(reply.content, reply_to=self.instruction)
        except OSError as error:
            raise _disk_failed(self.spool, error) from None
        except Exception as error:  # a node may send any bytes; they must not stop the round
            return self._error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"malformed reply: {type(error).__name__}")

    def _error(self, code: int, reason: str) -> Message:
        return Message(Error(code, one_line(reason)), reply_to=self.instruction)

    def _read(self, object_id: str) -> bytes:
        return self.spool.read(self.upload.contents[object_id])

    def _arrays(self) -> dict[str, bytes]:
        """Return the objects that say what their arrays are."""
        inner = {object_id: self._read(object_id) for object_id, parts in self.upload.children.items() if parts}
        return {name: one for name, one in inner.items() if get_object_type_from_object_content(one) == "Array"}

    def _array_bytes(self, content: bytes) -> int:
        """Return the size of an array, which may repeat a part of 5 MiB as often as it likes."""
        parts = get_object_children_ids_from_object_content(content)
        repeated = json.loads(content.partition(b"\x00")[2])["arraychunk_ids"]
        return sum(size_of(self.upload.contents[parts[i]]) for i in repeated)


class _LinkStateGrid(Grid):
    """Flower's Grid on the state itself: what HttpGrid does, without HTTP calls to ourselves for each object.

    A reply is handed over once it has arrived whole, so a slow or dying node holds up nobody.
    """

    def __init__(self, state: _LinkState, run_id: int) -> None:
        self._state = state
        self._run_id = run_id

    def set_run(self, run: Run) -> None:
        assert run.run_id == self._run_id

    @property
    def run(self) -> Run:
        return self._state.get_run_info(run_ids=[self._run_id])[0]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self._state.get_nodes(self._run_id))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As `push_bounded`, for replies without a vector."""
        return self.push_bounded(messages, SMALL_REPLY_BYTES)

    def push_bounded(self, messages: Iterable[Message], max_reply_bytes: int) -> Iterable[str]:
        """Send messages; return one id for each, "" where its node is not registered.

        Content that several messages share is hashed and stored once if they come in one call. Give each a
        `ttl` (s): one that nobody answered in time is then forgotten, with its content.
        """
        with no_object_id_recompute():
            return [self._state.send(message, self._run_id, max_reply_bytes) for message in messages]

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop these messages with their content, and whatever came of their replies."""
        self._state.delete_messages(set(message_ids))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies that have arrived, each read when it is asked for, and an error for each that is lost.

        Raises:
            TransportError: the disk did not take or give back a part of a reply.
        """
        if self._state.disk_failure is not None:
            raise _disk_failed(self._state.spool, self._state.disk_failure)
        wanted = set(message_ids)
        with self._state.lock:
            candidates = [self._state.complete_reply(message_id) for message_id in sorted(wanted)]
            replies = [reply for reply in candidates if reply is not None]
            answered = {reply.instruction.metadata.message_id for reply in replies}
            # Asked second, and under one lock: Flower calls a node gone even if it answered before it left.
            rest = self._state.get_message_res(wanted - answered, self._run_id)
            lost = [message for message in rest if message.metadata.src_node_id == SUPERLINK_NODE_ID]
            for message in lost:
                self._state.object_store.delete(message.metadata.message_id)
            self._state.delete_messages({message.metadata.reply_to_message_id for message in lost})
        return chain(map(self._taken, replies), lost)

    def _taken(self, reply: _Reply) -> Message:
        """Return a reply that has arrived, of which the server's disk then has nothing more."""
        message = reply.inflate()
        self._state.delete_messages({reply.instruction.metadata.message_id})
        return message

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that come within `timeout` s (None: all of them)."""
        waiting = set(self.push_messages(messages)) - {""}
        replies: list[Message] = []
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if not arrived:
                time.sleep(POLL_S)
        return replies


def _disk_failed(spool: Spool, error: OSError) -> TransportError:
    where = spool.folder or "the system's temporary files"
    line = f"spool: {where} must keep messages on their way, and does not: {error.strerror}"
    return TransportError("AGFL-TRANSPORT-009", line)


class _NotItsOwn(Exception):
    """A call in another node's name (401), or to what is another's (403)."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _OwnCallsOnly:
    """Innermost ASGI layer: a node calls in its own name and touches its own messages, which Flower does not check."""

    def __init__(self, app: ASGIApp, state: _LinkState, callers: Mapping[str, _Caller]) -> None:
        self._app, self._state, self._callers = app, state, callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = scope.get("state", {}).get("protobuf_request")
        try:
            if request is not None:
                self._check_call(request, self._callers[scope[KEY_ID]])
        except _NotItsOwn as error:
            await JSONResponse({"detail": "not this node's"}, status_code=error.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_call(self, request: Any, caller: _Caller) -> None:
        if not _is_of(request, caller):
            raise _NotItsOwn(401)
        node_id = caller.node_id
        if isinstance(request, PushMessagesRequest):
            senders = [message.metadata.src_node_id for message in request.messages_list]
            if senders != [node_id] or len(request.message_object_trees) != 1:
                raise _NotItsOwn(403)
        if isinstance(request, PushObjectRequest) and self._state.uploads.owner(request.session_id) not in (
            node_id,
            None,
        ):
            raise _NotItsOwn(403)
        if isinstance(request, PullObjectRequest) and not self._state.may_read(node_id, request.object_id):
            request.object_id = ""  # nobody's: the node learns that there is no such object
        if isinstance(request, ConfirmMessageReceivedRequest) and not self._state.may_drop(
            node_id, request.message_object_id
        ):
            raise _NotItsOwn(403)


def _is_of(request: Any, caller: _Caller) -> bool:
    """Return whether a request names the node that signed it."""
    if isinstance(request, ActivateNodeRequest):
        return bool(request.public_key == caller.public_key)
    claimed = request.node_id if isinstance(request, DeactivateNodeRequest) else request.node.node_id
    return bool(claimed == caller.node_id)


def _fleet_app(state: _LinkState, callers: Mapping[str, _Caller]) -> FastAPI:
    """Return Flower's Fleet API and nothing else; the middleware is Flower's, in its order, then ours.

    Flower's own authentication is left out: it signs the time and nothing else. The gate's has come before.
    """
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(_OwnCallsOnly, state=state, callers=callers),
        ],
    )
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, state.federation_manager, ObjectStoreFactory())
    factory.state_instance = state
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = True
    app.include_router(health.router)
    app.include_router(fleet_router)
    return app


def _start_run(state: _LinkState) -> tuple[int, int]:
    """Start the only run, under the marker's id and without code; return the ids of run and task."""
    run_id = state.create_run(MARKER_FAB_ID, "", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    assert task_id is not None
    state.claim_task(task_id)
    started = state.activate_task(task_id)
    assert started
    # Message() takes its sender from here.
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, task_id, SUPERLINK_NODE_ID
    return run_id, task_id
