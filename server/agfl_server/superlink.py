"""Flower's SuperLink inside our process: its Fleet API on one TLS port, its state in memory.

Of Flower's three HTTP APIs only the one that nodes speak, the Fleet API, is built in.
The only server file that imports Flower modules that are not public (flwr 1.41); what is used of each is held
fast by tests/server/test_superlink.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fastapi import FastAPI
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.routers import health
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from agfl_protocol.identity import MARKER_FAB_ID, PublicIdentity
from agfl_server.gate import Gate
from agfl_server.https import HttpsServer

POLL_S = 0.05


class EmbeddedSuperLink:
    """Serve the registered nodes, and only them, from `__enter__` to `__exit__`; the block is the run.

    Leaving it marks the run completed (or failed, on an exception) and frees the port.

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
    ) -> None:
        self._state = _LinkState()
        self._names = {_register(self._state, node): node.name for node in nodes}
        self._https = HttpsServer(Gate(_fleet_app(self._state)), host, port, certificate, key)

    @property
    def grid(self) -> Grid:
        """The way to the nodes; valid inside the block."""
        return self._grid

    @property
    def port(self) -> int:
        """The port listened on, also where port 0 asked for any free one; valid inside the block."""
        return self._https.port

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
        status, details = (SubStatus.COMPLETED, "") if kind is None else (SubStatus.FAILED, kind.__name__)
        self._state.finish_task(self._task_id, status, details)
        self._https.__exit__(kind, error, trace)
        self._state.cleanup_run(self._run_id)


class _LinkState(InMemoryLinkState):
    """Flower's state, for nodes that may die and return at once and for a run that lives in this process."""

    def __init__(self) -> None:
        super().__init__(NoOpFederationManager(), ObjectStoreFactory().store())
        # Flower takes these two locks in either order: an upload that expired could stop the server for good.
        self.lock = self._lock_object_push_sessions = threading.RLock()

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        # Flower turns away a node that it believes online: one killed and restarted would wait for a minute.
        with self.lock:
            self.deactivate_node(node_id)
            self._settle_unanswered(node_id)
            return super().activate_node(node_id, heartbeat_interval)

    def _settle_unanswered(self, node_id: int) -> None:
        """Deliver again what a returning node had not fetched whole; the rest is lost, and reported so."""
        lost = set()
        for message_id, message in self.message_ins_store.items():
            if message.metadata.dst_node_id != node_id or self.complete_reply(message_id) is not None:
                continue
            if message_id in self.object_store:
                message.metadata.delivered_at = ""
            else:
                lost.add(message_id)
        self.delete_messages(lost)

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        # Flower keeps the content until the run ends: one model for each straggler in each round.
        with self.lock:
            replies = self.message_ins_id_to_message_res_id
            roots = message_ins_ids | {replies[key] for key in message_ins_ids if key in replies}
            super().delete_messages(message_ins_ids)
            for message_id in roots:
                self.object_store.delete(message_id)

    def complete_reply(self, message_id: str) -> _Reply | None:
        """Return the reply to a message, or None while any part of it is missing."""
        with self.lock:
            instruction = self.message_ins_store.get(message_id)
            reply_id = self.message_ins_id_to_message_res_id.get(message_id)
            if instruction is None or reply_id is None:
                return None
            try:
                root = self.object_store.get_object_tree(reply_id)
            except NoObjectInStoreError:
                return None
            contents = {
                tree.object_id: self.object_store.get(tree.object_id) or b"" for tree in iterate_object_tree(root)
            }
            return _Reply(instruction, reply_id, contents) if all(contents.values()) else None

    def _cleanup_expired_task_tokens_locked(self) -> None:
        # Flower fails a run whose process has been silent for a minute. Ours is this process.
        pass


@dataclass(frozen=True)
class _Reply:
    instruction: Message
    reply_id: str
    contents: dict[str, bytes]

    def inflate(self) -> Message:
        """Return the reply; its metadata come from our instruction, since a node may write there anything."""
        try:
            reply = inflate_object_from_contents(self.reply_id, self.contents)
            assert isinstance(reply, Message)
            if reply.has_error():
                return Message(reply.error, reply_to=self.instruction)
            return Message(reply.content, reply_to=self.instruction)
        except Exception as error:  # a node may send any bytes; they must not stop the round
            reason = f"malformed reply: {type(error).__name__}"
            return Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason), reply_to=self.instruction)


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
        """Send messages; return one id for each, "" where its node is not registered.

        Content that several messages share is hashed and stored once if they come in one call. Give each a
        `ttl` (s): one that nobody answered in time is then forgotten, with its content.
        """
        with no_object_id_recompute():
            return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = message.object_id
        message.metadata.__dict__["_message_id"] = message_id
        session = self._state.start_session(self._run_id)
        missing = self._state.preregister_object_tree(get_object_tree(message), session)
        objects = get_all_nested_objects(message)
        for object_id in dict.fromkeys(missing):
            stored = self._state.store_object(self._run_id, session, object_id, objects[object_id].deflate())
            assert stored
        # Last, so that a node that sees the message finds all its objects and never sits out a 1 s backoff.
        if self._state.store_message_ins(remove_content_from_message(message)) is None:
            self._state.object_store.delete(message_id)
            return ""
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, and an error for each message that will never have one."""
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
            self._state.delete_messages(answered | {message.metadata.reply_to_message_id for message in lost})
        return [reply.inflate() for reply in replies] + lost

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


class _OwnRepliesOnly:
    """Innermost ASGI layer: a node may push replies in its own name only, which Flower does not check."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = scope.get("state", {}).get("protobuf_request")
        if isinstance(request, PushMessagesRequest):
            senders = {message.metadata.src_node_id for message in request.messages_list}
            if senders != {request.node.node_id}:
                refusal = JSONResponse({"detail": "reply in another node's name"}, status_code=403)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _fleet_app(state: _LinkState) -> FastAPI:
    """Return Flower's Fleet API and nothing else; the middleware is Flower's, in its order, then ours."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
            Middleware(_OwnRepliesOnly),
        ],
    )
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, state.federation_manager, ObjectStoreFactory())
    factory.state_instance = state
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = True
    app.include_router(health.router)
    app.include_router(fleet_router)
    return app


def _register(state: _LinkState, node: PublicIdentity) -> int:
    key = public_key_to_bytes(node.transport_public_key)
    return state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, heartbeat_interval=0, name=node.name)


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
