"""Flower's SuperLink inside our process: its Fleet API on one TLS port, its state in memory.

Of Flower's three HTTP APIs only the one that nodes speak, the Fleet API, is built in.
With `object_calls`, `sent_objects` and `whole_reply` the only server files that import Flower modules that are not
public (flwr 1.41); what is used of each is held fast by tests/server/test_superlink.py.
"""

from __future__ import annotations

import asyncio
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
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import ObjectStoreFactory
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

from agfl_protocol.identity.identity import MARKER_FAB_ID, PublicIdentity
from agfl_protocol.identity.request_signature import key_id
from agfl_server.aggregation.uploads import ReplyRefused, Uploads, new_session_id
from agfl_server.transport.gate import KEY_ID, Gate
from agfl_server.transport.https import HttpsServer
from agfl_server.transport.limits import SMALL_REPLY_BYTES, Limits
from agfl_server.transport.objects.object_calls import ObjectCalls, ObjectRequest
from agfl_server.transport.objects.sent_objects import SentObjects
from agfl_server.transport.objects.spool import Spool
from agfl_server.transport.objects.whole_reply import WholeReply
from agfl_server.transport.one_process import OneProcess
from agfl_server.transport.waiting_calls import Arrivals, WaitingCalls

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
            spool=self._state.spool,
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
        self._state.arrivals.close()
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
        self.spool, self.sent, self.arrivals = spool, SentObjects(spool), Arrivals(self._has_message_for)
        super().__init__(NoOpFederationManager(), self.sent)
        # Flower takes these two locks in either order: an upload that expired could stop the server for good.
        self.lock = self._lock_object_push_sessions = threading.RLock()
        self.uploads = Uploads(spool)
        self._sent_objects: dict[str, frozenset[str]] = {}

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        # Flower turns away a node that it believes online: one killed and restarted would wait for a minute.
        with self.lock:
            self.arrivals.drop(node_id)
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
        with self.lock:
            missing = self.object_store.preregister(run_id, get_object_tree(message))
        for object_id in dict.fromkeys(missing):
            try:  # without the lock, which Flower's own way holds: a slow disk would hold up every node
                self.object_store.put(object_id, objects[object_id].deflate())
            except OSError as error:
                raise self.spool.failed(error) from None
        with self.lock:
            # Last, so that a node that sees the message finds all its objects and never sits out a 1 s backoff.
            if self.store_message_ins(remove_content_from_message(message)) is None:
                self.object_store.delete(message_id)
                return ""
            self._sent_objects[message_id] = frozenset(objects)
            self.uploads.expect(message_id, message.metadata.dst_node_id, max_reply_bytes)
        self.arrivals.announce(message.metadata.dst_node_id)
        return message_id

    def _has_message_for(self, node_id: int) -> bool:
        """Return whether a message to the node was not delivered yet."""
        with self.lock:
            sent = (message.metadata for message in self.message_ins_store.values())
            return any(one.dst_node_id == node_id and one.delivered_at == "" for one in sent)

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
            self.spool.failure = error  # ends the run: nobody's reply is refused for it
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

    def complete_reply(self, message_id: str) -> WholeReply | None:
        """Return the reply to a message, or None while any part of it is missing."""
        with self.lock:
            instruction, upload = self.message_ins_store.get(message_id), self.uploads.of(message_id)
            if instruction is None or upload is None or not (upload.is_complete or upload.fault):
                return None
            return WholeReply(instruction, upload, self.spool)

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
        if self._state.spool.failure is not None:
            raise self._state.spool.failed(self._state.spool.failure)
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

    def _taken(self, reply: WholeReply) -> Message:
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
                # In a thread: whoever holds the state's lock may wait for the disk, and the event loop must not.
                await asyncio.to_thread(self._check_call, request, self._callers[scope[KEY_ID]])
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
    """Return Flower's Fleet API and nothing else; the middleware is Flower's, in its order, between ours.

    Flower's own authentication is left out: it signs the time and nothing else. The gate's has come before.
    """

    def refusal(key: str, request: ObjectRequest) -> int:
        caller = callers[key]
        if not _is_of(request, caller):
            return 401
        if isinstance(request, PullObjectRequest):
            return 0 if state.may_read(caller.node_id, request.object_id) else 403
        return 0 if state.uploads.owner(request.session_id) in (caller.node_id, None) else 403

    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(WaitingCalls, arrivals=state.arrivals, node_of=lambda key: callers[key].node_id),
            Middleware(ObjectCalls, objects=state.sent, refusal=refusal, store=state.store_object),
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
