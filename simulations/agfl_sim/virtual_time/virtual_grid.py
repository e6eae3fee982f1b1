"""A grid in a time that is made up: answers come when each owner's device would have sent them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models import stop_signal
from agfl_models.errors import ConfigError
from agfl_protocol.messages import wire
from agfl_server.transport import messaging
from agfl_server.transport.clock import Clock
from agfl_sim.engines.grid import GridAround
from agfl_sim.engines.opened_owners import BEGINS
from agfl_sim.virtual_time.ahead import Ahead
from agfl_sim.virtual_time.answers import Answer
from agfl_sim.virtual_time.devices import Device

_POLL_S = 0.001
_PLAN_BYTES = 100_000
_LAST_S = 60.0


@dataclass
class _Task:
    """A question to a node. at: when its answer is there; until the answer is known, the earliest moment for that.

    number: in the order in which nodes were asked. answer: once it is known, as long as somebody waits for it.
    """

    number: int
    node: int
    sent: float
    at: float
    is_training: bool
    is_known: bool = False
    is_forgotten: bool = False
    answer: Message | None = None


class VirtualGrid(GridAround):
    """Another grid's nodes, which answer as fast as their owners' devices.

    The same devices, run and number of processors or another one give the same rounds: nobody is late for what this
    machine does. Training and the bytes of messages take time, all else at owners and the server takes none. An owner
    that goes away finishes what it does and answers once it is back. It is its own `Clock`.
    steps: how many training steps a message asks for. now: seconds since the run began. keep: called with each moment
    at which an exchange begins; note: with how long each owner took to train.
    """

    def __init__(
        self,
        grid: Grid,
        devices: Mapping[int, Device],
        steps: Callable[[Message], int],
        now: float,
        keep: Callable[[float], None],
        note: Callable[[Answer], None],
    ) -> None:
        super().__init__(grid)
        self._devices, self._steps = devices, steps
        self._now, self._keep, self._note = now, keep, note
        self._slowest_s = max(
            2 * one.latency_s + _PLAN_BYTES * (1 / one.upload + 1 / one.download) for one in devices.values()
        )
        self._is_over = False  # whether nothing was ahead at the last look
        self._tasks: dict[str, _Task] = {}
        self._num_asked = 0
        self._there = set[str]()  # tasks whose answers are, and may be wanted
        # Of these the grid around which this one is may hold an answer, as large as a model.
        self._forgotten = set[str]()
        self._coming = Ahead[str]({})  # of tasks, by their `at`
        self._turns = Ahead({node: one.absences.next_turn(now) for node, one in devices.items()})
        self._free_at: dict[int, float] = {}

    @property
    def clock(self) -> Clock:
        """As of `TimedGrid`."""
        return self

    def now(self) -> float:
        """As of `Clock`."""
        return self._now

    def wait(self, seconds: float, longest_s: float) -> None:
        """As of `Clock`."""
        soonest, event = self._now + seconds, self._next_event(self._now + longest_s)
        if event < math.inf:
            self._now, self._is_over = max(soonest, event), False
            return
        if self._is_over:
            there = sum(map(self._is_there, self._devices))
            rule = (
                f"enough owners must be there for the run to go on: from {self._now:.0f} s on it is {there}, for ever"
            )
            raise ConfigError("AGFL-CONFIG-289", f"data.devices: {rule}")
        self._now, self._is_over = self._now + _LAST_S, True  # the server may give up, and knows more

    def patience_s(self, timeout_s: float) -> float:
        """As of `PatientGrid`: that of a deployment, and what the slowest line takes for a plan."""
        return timeout_s + self._slowest_s

    def straggler_wait_s(self, times: Sequence[float]) -> float:
        """As of `PatientGrid`: that of a deployment."""
        return messaging.straggler_wait_s(times)

    def get_node_ids(self) -> Iterable[int]:
        """Return who is there now."""
        return [node for node in self._grid.get_node_ids() if self._is_there(node)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message to its node; one for a node that is away gets no id.

        A node does what it is asked one after the other, also what nobody waits for any more.
        """
        messages = list(messages)
        if any(message.metadata.message_type in BEGINS for message in messages):
            self._keep(self._now)
        there = [message for message in messages if self._is_there(message.metadata.dst_node_id)]
        asked = {message.metadata.dst_node_id for message in there}
        self._let_go()
        for message_id, task in list(self._tasks.items()):
            if task.node in asked:
                self._give_up(message_id, task)
        ids = list(self._grid.push_messages(there))
        for message_id, message in zip(ids, there, strict=True):
            node, is_training = message.metadata.dst_node_id, self._steps(message) > 0
            self._num_asked += 1
            task = _Task(self._num_asked, node, self._now, self._ready_at(message), is_training)
            self._tasks[message_id] = task
            self._coming.put(message_id, task.at)
        given = iter(ids)
        return [next(given) if message.metadata.dst_node_id in asked else "" for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that are there; each is returned once."""
        self._arrive()
        found = []
        for message_id in message_ids:
            if message_id in self._there:
                task = self._tasks[message_id]
                assert task.answer is not None
                found.append(task.answer)
                self._end(message_id, task, is_late=False)
        return found

    def answered(self, message_ids: Collection[str]) -> Sequence[str]:
        """As of `AnsweredGrid`."""
        self._arrive()
        found = [message_id for message_id in self._there if message_id in message_ids]
        return sorted(found, key=lambda message_id: self._tasks[message_id].number)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Hold no answers to these; that nodes are at work until they have sent them stays as it is."""
        for message_id in message_ids:
            if (task := self._tasks.get(message_id)) is not None:
                task.is_forgotten, task.answer = True, None
                self._there.discard(message_id)
                if not task.is_known:
                    self._forgotten.add(message_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, wait for all replies, return them."""
        timeout_s = math.inf if timeout is None else timeout
        return [reply for _, reply in messaging.ask_nodes(self, list(messages), timeout_s)]

    def finish(self) -> None:
        """Have all nodes end what they were asked, also what nobody waits for: it is in their owners' ledgers."""
        for message_id, task in list(self._tasks.items()):
            self._give_up(message_id, task)

    def _is_there(self, node: int) -> bool:
        return self._devices[node].absences.back_at(self._now) == self._now

    def _ready_at(self, message: Message) -> float:
        """Return when a node has done what a message asks, and may begin to send."""
        node = message.metadata.dst_node_id
        device = self._devices[node]
        arrives = self._now + device.latency_s + wire.content_bytes(message) / device.download
        began = max(arrives, self._free_at.get(node, 0.0))
        return began + self._steps(message) * device.seconds_per_step

    def _give_up(self, message_id: str, task: _Task) -> None:
        self._finish(message_id, task)
        self._end(message_id, task, is_late=True)

    def _end(self, message_id: str, task: _Task, *, is_late: bool) -> None:
        del self._tasks[message_id]
        self._coming.drop(message_id)
        self._there.discard(message_id)
        if task.is_training:
            self._note(Answer(task.sent, self._devices[task.node].owner, task.at - task.sent, is_late))

    def _finish(self, message_id: str, task: _Task) -> None:
        """Wait, in the time of this machine, until the answer is known."""
        while not task.is_known:
            stop_signal.check()
            if not self._take([message_id]):
                time.sleep(_POLL_S)

    def _let_go(self) -> None:
        """Take the answers that nobody waits for out of the other grid, which has no use for them either."""
        self._take(list(self._forgotten))

    def _take(self, message_ids: Sequence[str]) -> bool:
        """Note when answers that the other grid has are there; return whether it had any."""
        found = False
        for answer in self._grid.pull_messages(message_ids):
            message_id = answer.metadata.reply_to_message_id
            task = self._tasks[message_id]
            device = self._devices[task.node]
            size = 0 if answer.has_error() else wire.content_bytes(answer)
            task.at = device.absences.back_at(task.at + size / device.upload + device.latency_s)
            task.is_known, task.answer = True, None if task.is_forgotten else answer
            self._forgotten.discard(message_id)
            self._free_at[task.node] = task.at
            self._coming.put(message_id, task.at)
            found = True
        return found

    def _arrive(self) -> None:
        """Note which answers are there now."""
        while (soonest := self._coming.first()) is not None and soonest[0] <= self._now:
            _, message_id = soonest
            task = self._tasks[message_id]
            if not task.is_known:
                self._finish(message_id, task)  # which may be there later than that
                continue
            self._coming.drop(message_id)
            if not task.is_forgotten:
                self._there.add(message_id)

    def _next_event(self, until: float) -> float:
        """Return when the next answer is there, or the next owner comes or goes; `until` if nothing is before."""
        return min(until, self._next_answer(until), self._next_turn())

    def _next_answer(self, until: float) -> float:
        """Return when the next answer is there, or any moment from `until` on if none is before."""
        self._arrive()
        while (soonest := self._coming.first()) is not None:
            at, message_id = soonest
            task = self._tasks[message_id]
            if at >= until or task.is_known:
                return at
            self._finish(message_id, task)
        return math.inf

    def _next_turn(self) -> float:
        """Return when the next owner comes or goes."""
        while (soonest := self._turns.first()) is not None:
            at, node = soonest
            if at > self._now:
                return at
            self._turns.put(node, self._devices[node].absences.next_turn(self._now))
        return math.inf
