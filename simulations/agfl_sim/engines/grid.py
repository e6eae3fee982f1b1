"""Flower's transport interface on one machine: by plain function calls, or by whatever else brings a message to a node.

The records of every message pass through the bytes in which they would travel, so nothing reaches a client or the
server that the wire would not carry.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Event, Lock
from typing import cast

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.message.recorddict import RecordType
from flwr.clientapp import ClientApp
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from agfl_server.transport.clock import Clock, MachineClock
from agfl_server.transport.messaging import straggler_wait_s

_RUN_ID, _SERVER_NODE_ID = 1, 1
_LONG_S = 86_400.0
_LOOK_S = 0.1  # between two looks whether the run was told to end


class ArrivalClock(MachineClock):
    """The time of this machine, where a reply that arrives ends a wait: nobody has to look again and again."""

    def __init__(self) -> None:
        self._arrived = Event()

    def wait(self, seconds: float, longest_s: float) -> None:
        """As of `Clock`."""
        self._arrived.wait(min(max(seconds, _LOOK_S), longest_s))
        self._arrived.clear()

    def note(self) -> None:
        """Note that there is a reply."""
        self._arrived.set()


class LocalGrid(Grid):
    """A grid whose nodes are on this machine; `_submit` brings a message to one.

    waits_for_all: nobody is late, since all nodes share this machine: else a busy one would decide who is in a sum.
    """

    def __init__(self, nodes: Iterable[int], *, waits_for_all: bool) -> None:
        take_identity()
        self._node_ids = nodes if isinstance(nodes, Sequence) else list(nodes)
        self._run = Run.create_empty(_RUN_ID)
        self._pending: dict[str, tuple[int, Future[Message]]] = {}
        self._done: set[str] = set()  # the server asks far more often than a future answers cheaply
        self._clock = ArrivalClock()
        self._num_pushed = 0
        self._waits_for_all = waits_for_all

    @abstractmethod
    def _submit(self, message: Message, message_id: str) -> Future[Message]:
        """Have a node answer a message, in the background."""

    @property
    def clock(self) -> Clock:
        """See `TimedGrid`."""
        return self._clock

    def patience_s(self, timeout_s: float) -> float:
        """See `PatientGrid`."""
        return _LONG_S if self._waits_for_all else timeout_s

    def straggler_wait_s(self, times: Sequence[float]) -> float:
        """See `PatientGrid`."""
        return math.inf if self._waits_for_all else straggler_wait_s(times)

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """Part of Flower's interface."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Part of Flower's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes are always there."""
        return self._node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand each message to its node; nodes work in the background, in the order of the messages.

        What a node was asked before, and nobody pulled, is dropped: the server has given up on it.
        """
        messages = list(messages)
        self._drop({message.metadata.dst_node_id for message in messages})
        message_ids = []
        for message in messages:
            self._num_pushed += 1
            message_id = str(self._num_pushed)
            future = self._submit(message, message_id)
            self._pending[message_id] = message.metadata.dst_node_id, future
            future.add_done_callback(partial(self._note_done, message_id))
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; each is returned once."""
        ready = [mid for mid in message_ids if mid in self._done and mid in self._pending]
        return [self._taken(mid).result() for mid in ready]

    def answered(self, message_ids: Collection[str]) -> Sequence[str]:
        """See `AnsweredGrid`."""
        return sorted((mid for mid in list(self._done) if mid in message_ids), key=int)  # threads add to it

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, wait for all replies, return them."""
        return [self._taken(mid).result(timeout) for mid in self.push_messages(messages)]

    def _drop(self, nodes: Collection[int]) -> None:
        for message_id in [mid for mid, (node, _) in self._pending.items() if node in nodes]:
            self._taken(message_id).cancel()  # one that has begun ends for nobody

    def _note_done(self, message_id: str, future: Future[Message]) -> None:
        if message_id in self._pending:
            self._done.add(message_id)
            self._clock.note()

    def _taken(self, message_id: str) -> Future[Message]:
        _, future = self._pending.pop(message_id)
        self._done.discard(message_id)
        return future


class GridAround(Grid):
    """A grid around another one, to which it leaves what has nothing to do with when messages go and come."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Part of Flower's interface."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of Flower's interface."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)


class InProcessGrid(LocalGrid):
    """Calls the ClientApps of `nodes` (node id -> app) in a pool of `num_workers` threads, a node in one at a time."""

    def __init__(self, nodes: Mapping[int, ClientApp], num_workers: int, *, waits_for_all: bool = False) -> None:
        super().__init__(nodes, waits_for_all=waits_for_all)
        self._nodes = dict(nodes)
        self._locks: dict[int, Lock] = {}  # of nodes that were asked
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="client")

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what has not begun; what runs is waited for."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, message: Message, message_id: str) -> Future[Message]:
        return self._pool.submit(self._deliver, message, message_id)

    def _deliver(self, message: Message, message_id: str) -> Message:
        request = carried(message)
        node = request.metadata.dst_node_id
        with self._locks.setdefault(node, Lock()):
            return carried(answer(self._app_of(node), request, message_id))

    def _app_of(self, node: int) -> ClientApp:
        return self._nodes[node]


def take_identity() -> None:
    """Let this process make messages: Message() reads the identity of the task that makes it from here."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _SERVER_NODE_ID


def answer(app: ClientApp, request: Message, message_id: str) -> Message:
    """Return a node's reply to a request that arrived."""
    request.metadata.__dict__["_message_id"] = message_id
    node = request.metadata.dst_node_id
    return app(request, Context(_RUN_ID, node, node_config={}, state=RecordDict(), run_config={}))


def carried(message: Message) -> Message:
    """Return a message as the other side reads it, without the SHA-256 of each part by which the wire asks for it."""
    if message.has_error():
        return Message.inflate(message.deflate())
    metadata = metadata_from_proto(metadata_to_proto(message.metadata))
    return make_message(metadata, RecordDict({key: _carried(record) for key, record in message.content.items()}))


def _carried(record: RecordType) -> RecordType:
    if isinstance(record, ArrayRecord):  # bytes, which nobody can change, are shared; what else holds numbers is copied
        return ArrayRecord({key: Array(a.dtype, a.shape, a.stype, bytes(a.data)) for key, a in record.items()})
    return type(record).inflate(record.deflate())


def deflated(message: Message) -> tuple[str, dict[str, bytes]]:
    """Return the bytes in which a message travels: its object's id, and each of its objects by id, a SHA-256."""
    (found,) = deflated_together([message])
    return found


def deflated_together(messages: Sequence[Message]) -> list[tuple[str, dict[str, bytes]]]:
    """Return each message as `deflated` does; content that several share is hashed and copied once."""
    contents: dict[int, dict[str, bytes]] = {}
    found = []
    with no_object_id_recompute():  # else each object is hashed again for all around it
        for message in messages:
            content = message.content if message.has_content() else None
            if id(content) not in contents:
                nested = {} if content is None else get_all_nested_objects(content)
                contents[id(content)] = {key: value.deflate() for key, value in nested.items()}
            found.append((message.object_id, contents[id(content)] | {message.object_id: message.deflate()}))
    return found


def inflated(object_id: str, contents: Mapping[str, bytes]) -> Message:
    """Return a message as the other side reads it from its bytes."""
    return cast(Message, inflate_object_from_contents(object_id, dict(contents)))
