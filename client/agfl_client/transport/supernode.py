"""The node's loop: ask the server for a message, let the installed ClientApp answer it, send the reply.

The node only ever calls out: it listens on no port for others, and never fetches code.
The only client file that imports Flower modules that are not public (flwr 1.41); what is used of each is held
fast by tests/client/test_supernode.py. Flower's own wrapper of this client, `http_request_response`, ends the
process if it cannot connect, interrupts it once the server has restarted, and else retries without end.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient

from agfl_client.own_screen import size_shown
from agfl_client.transport.bounded_http import bounded_client
from agfl_client.transport.process_marker import ProcessMarker, superseded_problem
from agfl_client.transport.pulling import MAX_OBJECT_BYTES, Allowance, join_arrays, pull_message, take_little
from agfl_client.transport.request_signer import RequestSigner, clock_problem
from agfl_client.transport.server_trust import TrustedServer
from agfl_models.bounded import shown
from agfl_models.errors import AgflError, DataError, IdentityError, PretrainedError, TransportError, WireError
from agfl_models.machine import returning_freed_memory
from agfl_protocol.identity.identity import MARKER_FAB_ID
from agfl_protocol.identity.request_signature import key_id, short_id
from agfl_protocol.messages.wire import content_bytes
from agfl_protocol.process_mark import SUPERSEDED_STATUS

POLL_MIN_S, POLL_MAX_S = 0.05, 0.5
RETRY_MIN_S, RETRY_MAX_S = 0.1, 1.0
HEARTBEAT_S, HEARTBEAT_PROMISE_S = 4.0, 10.0  # the server calls a node gone after twice the promise
REQUEST_TIMEOUT_S = 15.0
LAST_REPLY_S = 5.0
LEAVE_WITHIN_S, LEAVE_TIMEOUT_S = 2 * HEARTBEAT_S, 3.0
PUSH_ATTEMPTS = 3
PUSHES_AT_ONCE = 2  # the server takes no more of a node
ANSWERED_TYPES = ("train", "evaluate", "query")

_UPLOADS = {
    "train": "your part of the sum",
    "evaluate": "your part of the sum",
    "query.mask": "your masked part of the sum",
}
_LEAST_SHOWN_BYTES = 1024  # less is keys and signatures

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

log = logging.getLogger("agfl.client")


def run_node(
    server: str,
    ca: Path,
    transport_key: EllipticCurvePrivateKey,
    client_app: ClientApp,
    *,
    stop: threading.Event,
    finished: Callable[[], bool],
    max_wait_s: float,
    allowance: Allowance = take_little,
    name: str = "",
) -> None:
    """Serve one server until `finished()` is true after a reply was delivered, or `stop` is set.

    server: HOST:PORT. ca: the federation's ca.pem. max_wait_s: how long the server may be away at a time.
    allowance: how many bytes of arrays are fetched for a message, by its kind and its records without arrays.
    name: the owner's, for the operator's log where the key is not admitted.
    `stop` is looked at between messages and between calls to the server; a KeyboardInterrupt leaves at once.

    Raises:
        IdentityError: the server's certificate is not signed by `ca`, or the server does not admit the key.
        TransportError: the server was away for `max_wait_s`, or is no server of ours.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with _Connection(TrustedServer(server, ca), transport_key, stop, max_wait_s, name) as connection:
        loop = _Loop(connection, client_app, stop, finished, allowance)
        with suppress(_Stopped):
            while not stop.is_set() and not finished():
                try:
                    loop.serve(connection.activate())
                except _SessionLost:
                    stop.wait(RETRY_MIN_S)


class _Stopped(Exception):
    """`stop` was set, or the connection closed, while we waited for the server."""


class _SessionLost(Exception):
    """The server does not know our node id (any more), or a poll got no answer: activate again."""


class _ReplyUnwanted(Exception):
    """The server waits for this reply no longer."""


class _RunOver(Exception):
    """The server takes nothing for this run any more."""


class _FleetClient(FleetHttpClient):
    """Flower's client over ours: its own would take whatever comes, and fail on variables that it cannot read."""

    def __init__(self, url: str, interceptors: Sequence[ProtobufClientInterceptor], http: httpx.Client) -> None:
        self._base_url, self._interceptors, self._retry_invoker, self._client = url, tuple(interceptors), None, http


class _Connection:
    """The server's Fleet API, spoken as one node; each call is repeated while the server is away."""

    def __init__(
        self,
        server: TrustedServer,
        key: EllipticCurvePrivateKey,
        stop: threading.Event,
        max_wait_s: float,
        name: str,
    ) -> None:
        self._server, self._stop, self._max_wait_s, self._name = server, stop, max_wait_s, name
        self._key, self._tls = key, server.tls()
        self._proxy = server.proxy()
        if self._proxy is not None:
            log.info("by way of the proxy %s, which %s names", self._proxy.shown, self._proxy.variable)
        self.api = self._new_client(REQUEST_TIMEOUT_S)
        self.node = Node()
        self._answered_at = -math.inf
        self._closed = threading.Event()

    def _new_client(self, timeout_s: float) -> FleetHttpClient:
        proxy = None if self._proxy is None else self._proxy.url
        http = bounded_client(self._tls, timeout_s, MAX_OBJECT_BYTES, proxy)
        return _FleetClient(
            f"https://{self._server.address}", [RequestSigner(self._key, self._name), ProcessMarker()], http
        )

    def __enter__(self) -> _Connection:
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed.set()
        self.api.close()
        if time.monotonic() - self._answered_at < LEAVE_WITHIN_S:
            # A courtesy, to a server that seems well: without it our silence would tell. On a connection of its
            # own, since an interrupt may have broken the other.
            with suppress(httpx.HTTPError, WireError), self._new_client(LEAVE_TIMEOUT_S) as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))

    def activate(self) -> Node:
        """Come online under the node id that the server gives us; it changes when the server restarts."""
        key = public_key_to_bytes(self._key.public_key())
        request = ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT_PROMISE_S)
        try:
            response = self.call(self.api.ActivateNode, request)
        except httpx.HTTPStatusError as error:
            raise self._not_admitted(error.response) from None
        is_new = response.node_id != self.node.node_id
        self.node = Node(node_id=response.node_id)
        if is_new:
            log.info("connected to %s", self._server.address)
        return self.node

    def call(
        self, method: Callable[[RequestT], ResponseT], request: RequestT, max_wait_s: float | None = None
    ) -> ResponseT:
        """Call the server, again and again while it is away, but not longer than `max_wait_s`.

        Raises:
            httpx.HTTPStatusError: the server answers with a status below 500.
        """
        max_wait_s = self._max_wait_s if max_wait_s is None else max_wait_s
        start, delay = time.monotonic(), RETRY_MIN_S
        while True:
            try:
                return self.try_call(method, request)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                    raise
                self._server.raise_if_hopeless(error)
                if time.monotonic() - start >= max_wait_s:
                    raise self._gone(max_wait_s, error) from None
                if delay == RETRY_MIN_S:
                    log.info("waiting up to %g s for %s", max_wait_s, self._server.address)
            if self._stop.wait(delay) or self._closed.is_set():
                raise _Stopped
            delay = min(delay * 2, RETRY_MAX_S)

    def try_call(self, method: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        """Call the server once."""
        response = method(request)
        self._answered_at = time.monotonic()
        return response

    def _gone(self, waited_s: float, error: Exception) -> TransportError:
        address, proxy = self._server.address, self._proxy
        line = f"--server: must answer within {waited_s:g} s, but {address} did not ({error or type(error).__name__})"
        if proxy is not None:
            line += f" by way of the proxy {proxy.shown}, which {proxy.variable} names"
            line += f"; NO_PROXY={self._server.host} goes without it"
        return TransportError("AGFL-TRANSPORT-005", line)

    def _not_admitted(self, response: httpx.Response) -> AgflError:
        address, status = self._server.address, response.status_code
        superseded = superseded_problem(response)
        if superseded is not None:
            return IdentityError("AGFL-IDENTITY-044", superseded)
        if status == 412:
            return IdentityError(
                "AGFL-IDENTITY-045",
                f"transport key: {address} does not admit this key ({short_id(key_id(self._key.public_key()))}); its "
                "operator has removed this node, or must register its public file with `agfl-server add-node` and "
                "start the server anew",
            )
        if status == 401:
            clock = clock_problem(response)
            if clock is not None:
                return IdentityError("AGFL-IDENTITY-046", clock)
            return IdentityError("AGFL-IDENTITY-047", f"transport key: {address} rejects our signature")
        return TransportError(
            "AGFL-TRANSPORT-006", f"--server: must be an agfl server, but {address} answers HTTP {status}"
        )

    def _heartbeat(self) -> None:
        """Tell the server that we live, also while the loop is busy with an answer."""
        while not self._closed.wait(HEARTBEAT_S):
            # A failure is not ours to judge: the loop meets the same server.
            with suppress(httpx.HTTPError, RuntimeError, WireError):
                if self.node.node_id:
                    request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_PROMISE_S)
                    self.try_call(self.api.SendNodeHeartbeat, request)


class _Loop:
    """Answers messages with the installed ClientApp, one at a time, in the calling thread."""

    def __init__(
        self,
        connection: _Connection,
        client_app: ClientApp,
        stop: threading.Event,
        finished: Callable[[], bool],
        allowance: Allowance,
    ) -> None:
        self._allowance = allowance
        self._connection, self._api = connection, connection.api
        self._client_app, self._stop, self._finished = client_app, stop, finished
        self._node = Node()
        self._fab_ids: dict[int, str] = {}
        self._contexts: dict[int, Context] = {}

    def serve(self, node: Node) -> None:
        """Poll and answer until finished or stopped.

        Raises:
            _SessionLost: the server must be asked for our node id again.
        """
        if node != self._node:  # another server process: its runs are new
            self._node, self._fab_ids, self._contexts = node, {}, {}
        delay = POLL_MIN_S
        while not self._finished() and not self._stop.is_set():
            asked_at = time.monotonic()
            pulled = self._poll()
            if pulled is None:
                if time.monotonic() - asked_at < POLL_MAX_S:  # else the server has let the call wait
                    self._stop.wait(delay)
                    delay = min(delay * 1.5, POLL_MAX_S)
                continue
            delay = POLL_MIN_S
            try:
                self._handle(pulled)
            except _RunOver:
                log.info("the server ended the run")

    def _poll(self) -> Message | None:
        # Not repeated by itself: the server holds a message for delivered once its answer is on the way, and
        # delivers it again only to a node that activates anew.
        try:
            request = PullMessagesRequest(node=self._node)
            response = self._connection.try_call(self._api.PullMessages, request)
        except (httpx.TransportError, httpx.HTTPStatusError):
            raise _SessionLost from None
        if not response.messages_list:
            return None
        # The tree of its objects comes, too, but it is only what the server says; `pull_message` looks for itself.
        return message_from_proto(response.messages_list[0])

    def _handle(self, envelope: Message) -> None:
        """Answer one message, of which `envelope` has the metadata."""
        start = time.monotonic()
        refusal = self._refusal(envelope)
        if refusal is not None:
            log.warning("refused: %s", refusal)
            reply = Message(Error(ErrorCode.INVALID_FAB, refusal), reply_to=envelope)
        else:
            try:
                with returning_freed_memory():  # pieces, which each thread's heap would keep
                    contents = self._pull(envelope)
            except ObjectPullError:
                log.info("the server withdrew a message before it was here whole")
                return
            except TransportError:
                raise
            except AgflError as error:
                reply = self._refuse(envelope, error)
            else:
                reply = self._answer(envelope, contents)
        duration_s = time.monotonic() - start
        with returning_freed_memory():
            self._push(reply, duration_s)
        kind, sent = envelope.metadata.message_type, content_bytes(reply)
        log.debug("answered %s in %.2f s", kind, duration_s)
        if not reply.has_error() and kind in _UPLOADS and sent >= _LEAST_SHOWN_BYTES:
            log.info("%s: %s sent", _UPLOADS[kind], size_shown(sent))

    def _refusal(self, envelope: Message) -> str | None:
        """Return why this node does not answer a message; nothing of its content is fetched before."""
        run_id, kind = envelope.metadata.run_id, envelope.metadata.message_type
        if run_id not in self._fab_ids:
            self._fab_ids[run_id] = self._call(
                self._api.GetRun, GetRunRequest(node=self._node, run_id=run_id)
            ).run.fab_id
        if self._fab_ids[run_id] != MARKER_FAB_ID:
            return f"fab_id: must be {MARKER_FAB_ID!r}, got {shown(self._fab_ids[run_id])}"
        if kind.split(".")[0] not in ANSWERED_TYPES:
            return f"message type: must be one of {', '.join(ANSWERED_TYPES)}, got {shown(kind)}"
        return None

    def _pull(self, envelope: Message) -> dict[str, bytes]:
        """Fetch a message's objects, if they are not too large; from here on the server has forgotten it."""
        run_id, message_id = envelope.metadata.run_id, envelope.metadata.message_id
        pull = make_pull_object_fn_protobuf(
            lambda request: self._call(self._api.PullObject, request), self._node, run_id
        )

        def fetch(ids: Sequence[str], arrived: Callable[[str, int], None]) -> dict[str, bytes]:
            def pull_one(object_id: str) -> bytes:
                content = pull(object_id)
                arrived(object_id, len(content))
                return content

            return pull_objects(list(ids), pull_one)

        contents = pull_message(message_id, envelope.metadata.message_type, fetch, self._allowance)
        confirmation = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id)
        self._call(self._api.ConfirmMessageReceived, confirmation)
        return contents

    def _answer(self, envelope: Message, contents: dict[str, bytes]) -> Message:
        """Let the app answer. An exception becomes an error reply that tells nothing of the data."""
        run_id, kind = envelope.metadata.run_id, envelope.metadata.message_type
        if run_id not in self._contexts:
            self._contexts[run_id] = Context(run_id, self._node.node_id, {}, RecordDict(), {})
        try:
            with returning_freed_memory():
                arrays: dict[str, InflatableObject] = {**join_arrays(contents)}
            message = inflate_object_from_contents(envelope.metadata.message_id, contents, objects=arrays)
            del arrays
            assert isinstance(message, Message)
            message.metadata.__dict__["_message_id"] = envelope.metadata.message_id
            return self._client_app(message, self._contexts[run_id])
        except AgflError as error:
            return self._refuse(envelope, error)
        except Exception as error:
            log.exception("%s not answered", kind)
            reason = type(error).__name__
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=envelope)

    def _refuse(self, envelope: Message, error: AgflError) -> Message:
        log.error("%s not answered: %s", envelope.metadata.message_type, error)
        is_own = isinstance(error, DataError | PretrainedError)  # the line may quote the owner's text or paths
        reason = type(error).__name__ if is_own else str(error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=envelope)

    def _push(self, reply: Message, duration_s: float) -> None:
        """Deliver a reply. The server may leave before it confirms the last one, which is no error."""
        try:
            for _ in range(PUSH_ATTEMPTS):
                if self._try_push(reply, duration_s):
                    return
            log.warning("the server did not take a reply")
        except (TransportError, _SessionLost, _RunOver):
            if not self._finished():
                raise
            log.info("the server left before it confirmed the last reply")

    def _try_push(self, reply: Message, duration_s: float) -> bool:
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[duration_s],
            )
            response = self._call(self._api.PushMessages, request)
            push = make_push_object_fn_protobuf(
                lambda request: self._call(self._api.PushObject, request),
                self._node,
                run_id,
                response.session_id,
            )
            try:
                objects = get_all_nested_objects(reply)
                # Each once, and none that is not there, whatever the server asks for.
                asked = [object_id for object_id in dict.fromkeys(response.objects_to_push) if object_id in objects]
                _push_all(objects, asked, push)
            except ObjectPushError:
                # A repeated call finds its object stored, or the upload has expired: ask what is missing now.
                return False
            except _ReplyUnwanted:
                log.info("the server no longer waits for this reply")
        return True

    def _call(self, method: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        max_wait_s = LAST_REPLY_S if self._finished() else None
        try:
            return self._connection.call(method, request, max_wait_s)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 412, SUPERSEDED_STATUS):  # activating anew says why
                raise _SessionLost from None
            if status == 403:
                raise _RunOver from None
            if status == 410:
                raise _ReplyUnwanted from None
            raise TransportError("AGFL-TRANSPORT-007", f"--server: must answer our calls, got HTTP {status}") from None


def _push_all(
    objects: Mapping[str, InflatableObject], object_ids: Iterable[str], push: Callable[[str, bytes], None]
) -> None:
    """Push objects, each put into bytes when its turn comes; Flower's own function has all of them in memory before."""
    waiting, lock, over = iter(object_ids), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not over.is_set():
                with lock:
                    object_id = next(waiting, None)
                if object_id is None:
                    return
                push(object_id, objects[object_id].deflate())
        except BaseException:
            over.set()
            raise

    pool = ThreadPoolExecutor(PUSHES_AT_ONCE, thread_name_prefix="push")
    try:
        for done in as_completed([pool.submit(work) for _ in range(PUSHES_AT_ONCE)]):
            done.result()
    finally:
        over.set()
        pool.shutdown(wait=False)
