"""One exchange over Flower's Grid: push requests, yield each reply as it comes, keep none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from statistics import median
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models import stop_signal
from agfl_models.errors import one_line
from agfl_server.rounds.observer import DISCONNECTED
from agfl_server.transport.clock import clock_of
from agfl_server.transport.limits import SMALL_REPLY_BYTES, forget, push

_POLL_MIN_S, _POLL_MAX_S = 0.001, 0.02  # an exchange that takes milliseconds is not waited for longer
_CLOCK_SKEW_S = 3600.0  # a message expires by the node's clock; its content is freed when it does
_STRAGGLER_FACTOR, _STRAGGLER_S = 3.0, 30.0
_LOST = frozenset({3, 4, 5})  # Flower's codes: a message, a reply or a node is not there
_GONE = 5
_PULL_AT_ONCE = 4  # replies held in memory at one time, whatever the cohort's size


@runtime_checkable
class PatientGrid(Protocol):
    """A grid that says itself how long its nodes are waited for."""

    def patience_s(self, timeout_s: float) -> float:
        """Return how long nodes have for a question that takes no training, which others have `timeout_s` for."""

    def straggler_wait_s(self, times: Sequence[float]) -> float:
        """As the function of this name."""


@runtime_checkable
class AnsweredGrid(Protocol):
    """A grid that knows which replies are there, without a look at each that is not."""

    def answered(self, message_ids: Collection[str]) -> Sequence[str]:
        """Return those of `message_ids` whose replies are there now, in the order in which they were pushed."""


@runtime_checkable
class PopulousGrid(Protocol):
    """A grid that has the NAMES of all its nodes, too many to be asked who they are: a sum invites a few of them."""

    @property
    def names(self) -> Sequence[str]:
        """Sorted; made when they are looked at."""

    def node_of(self, name: str) -> int:
        """Return the id of one of `names`."""


def ask_nodes(
    grid: Grid,
    requests: Sequence[Message],
    timeout_s: float,
    max_reply_bytes: int = SMALL_REPLY_BYTES,
    enough: int | None = None,
) -> Iterator[tuple[int, Message]]:
    """Push `requests` and yield (node id, reply) as replies arrive, until all came or `timeout_s` passed.

    A node that does not answer in time yields nothing, and what came of its reply is dropped. Requests and replies
    are not kept here, so a caller that keeps none holds one vector at a time. Every wait of a run for
    its nodes is here, so this is where a signal that was lost elsewhere ends the run. Replies are pulled a few
    at a time and not kept, so memory does not grow with the cohort.
    max_reply_bytes: what the longest honest reply has; no more is taken. enough: once there are so many answers, and
    half of all, the others have `straggler_wait_s` of the times that these took, instead of `timeout_s`, or what the
    grid says.
    """
    num_asked, asked = len(requests), [request.metadata.dst_node_id for request in requests]
    for request in requests:
        request.metadata.ttl = timeout_s + _CLOCK_SKEW_S
    message_ids = push(grid, requests, max_reply_bytes)
    request = requests = ()  # type: ignore[assignment]  # the grid has their content, which may be a model
    # A message for a node that has just left gets no id.
    nodes = {mid: node for mid, node in zip(message_ids, asked, strict=True) if mid}
    wait_s = grid.straggler_wait_s if isinstance(grid, PatientGrid) else straggler_wait_s
    answered = grid.answered if isinstance(grid, AnsweredGrid) else None
    clock = clock_of(grid)
    started = clock.now()
    deadline = started + timeout_s
    times: list[float] = []
    pause_s = _POLL_MIN_S
    try:
        while nodes and clock.now() < deadline:
            stop_signal.check()
            arrived = False
            waiting = list(nodes) if answered is None else answered(nodes.keys())
            for i in range(0, len(waiting), _PULL_AT_ONCE):
                for reply in grid.pull_messages(waiting[i : i + _PULL_AT_ONCE]):
                    node = nodes.pop(reply.metadata.reply_to_message_id, None)
                    if node is not None:
                        arrived = True
                        if not reply.has_error():
                            times.append(clock.now() - started)
                        yield node, reply
                    del reply  # before the next one is read
            if enough is not None and len(times) >= max(enough, (num_asked + 1) // 2):
                deadline = started + min(timeout_s, wait_s(times))
            if not arrived:
                clock.wait(pause_s, deadline - clock.now())
            pause_s = _POLL_MIN_S if arrived else min(2 * pause_s, _POLL_MAX_S)
    finally:
        forget(grid, list(nodes))


def error_of(reply: Message) -> tuple[str, bool]:
    """Return the reason of an error reply, and whether its owner refused: else the answer was lost on the way."""
    code, reason = reply.error.code, reply.error.reason or "no reason given"
    if code == _GONE:
        reason = DISCONNECTED
    return one_line(reason), code not in _LOST


def straggler_wait_s(times: Sequence[float]) -> float:
    """Return how long after the start of a trip others are waited for, where so many answered after `times`."""
    return _STRAGGLER_FACTOR * median(times) + _STRAGGLER_S
