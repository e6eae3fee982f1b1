"""Who is there: the NAMES of the nodes that are connected."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from agfl_models.errors import RoundError, WireError
from agfl_protocol.messages import wire
from agfl_protocol.messages.wire import Answer
from agfl_protocol.plans.plan import Plan
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.refusals import Refusals
from agfl_server.rounds.sampling import Draw, num_others, sample_names
from agfl_server.rounds.suspects import Absences
from agfl_server.transport.attendees import Attendees, attendees_of
from agfl_server.transport.clock import Clock, clock_of
from agfl_server.transport.messaging import PatientGrid, ask_nodes, error_of

_IDENTIFY_TIMEOUT_S = 10.0
_ASK_AGAIN_S = 60.0  # a node that did not say who it is is not asked, nor waited for, before
_PROPOSE_TIMEOUT_S = 20.0
_PROPOSE_AGAIN_S = 2.0
_POLL_S = 0.1
_WAKE_TIMEOUT_S = 5.0
_WAKE_AGAIN_S = 10.0
_PATIENCE_S = 20.0  # a node that was only overloaded has answered otherwise by then
_MAX_DRAWS = 10  # of a cohort, while owners refuse: else a mistake that all have asks a million
_SHOWN = 12  # owners of whom a line says why they take no part


@dataclass
class ConnectedNodes:
    """Maps NAMES to the node ids of the moment; asks each new node who it is, and then what its owner says to the plan.

    registered_name: the NAME under which a node's key was admitted; None where the transport knows none. waited_s: how
    long it was waited for owners so far, which is no part of a round's seconds.
    """

    grid: Grid
    observer: Observer
    registered_name: Callable[[int], str | None] | None = None
    waited_s: float = 0.0
    _names: dict[int, str | None] = field(default_factory=dict)
    _ask_at: dict[int, float] = field(default_factory=dict)
    _plan: Plan | None = None
    _answers: dict[int, Answer] = field(default_factory=dict)
    _keepers: set[int] = field(default_factory=set)
    _told: dict[int, str] = field(default_factory=dict)
    _silent: Absences[str] = field(default_factory=Absences)
    _wake_at: float = 0.0
    _attendees: Attendees = field(init=False)
    _clock: Clock = field(init=False)
    _refusals: Refusals = field(init=False)
    _absent: Mapping[str, str] = field(default_factory=dict)
    _declined: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._attendees, self._clock = attendees_of(self.grid), clock_of(self.grid)
        self._refusals = Refusals(self._clock.now)

    @property
    def count(self) -> int:
        """How many NAMES the nodes had that were ever connected; asks nobody."""
        if self._attendees.names is not None:
            return len(self._attendees.names)
        return len({name for name in self._names.values() if name is not None})

    @property
    def online(self) -> Sequence[int]:
        """The nodes that are there now, and may take part."""
        return self._attendees.online()

    def invite(self, among: Collection[str] | None, size: int | None, needed: int, draw: Draw) -> dict[str, int] | None:
        """Draw who takes part next, and others in place of those who refuse; None where whoever is connected may.

        Return {NAME: node id}. Nothing is kept of anybody else but why it took no part. among: all if omitted. size: as
        of `sample_cohort`.

        Raises:
            RoundError: fewer than `needed` take part, though others were drawn ten times, or until nobody was left.
        """
        names = self._attendees.names
        if names is None:
            return None
        names = names if among is None else sorted(among)
        asked, found = set[str](), dict[str, int]()
        for _ in range(_MAX_DRAWS):
            out = {*draw.excluded, *self._declined, *asked}
            lacking = min((len(names) if size is None else size) - len(found), num_others(names, out))
            if lacking <= 0:
                break
            avoided = {*out, *draw.avoided, *self._silent.now}
            avoided = avoided if num_others(names, avoided) >= lacking else out
            drawn = sample_names(names, lacking, draw.seed, draw.exchange, avoided)
            asked.update(drawn)
            for name in drawn:
                self._silent.take_back(name)
            self.invite_again([*found, *drawn])
            found = self.connected()
            reasons = {self._attendees.name_of(node): self._told.get(node) for node in self.online}
            self._declined |= {name: why for name, why in reasons.items() if name and why and name not in found}
        if len(found) < needed:
            raise _too_few(needed, len(found), self._declined)
        self.invite_again(found)
        return found

    def invite_again(self, names: Iterable[str]) -> None:
        """Have these take part next, where that is not whoever is connected."""
        if self._attendees.names is None:
            return
        self._attendees.invite(names)
        kept = set(self.online)
        self._names = {node: name for node, name in self._names.items() if node in kept}
        self._ask_at = {node: at for node, at in self._ask_at.items() if node in kept}
        self._told = {node: why for node, why in self._told.items() if node in kept}
        self._keepers &= kept

    @property
    def can_change(self) -> bool:
        """Whether an owner that refuses may mend what is wrong: not where this process holds all of them."""
        return self.registered_name is not None

    @property
    def keepers(self) -> dict[str, int]:
        """{NAME: node id} of those that approved the plan and want the trained model, whoever the last draws had."""
        online = [n for n in self.online if n in self._keepers]
        approved = [n for n in online if self._answers.get(n) is Answer.APPROVED]
        return {name: node for node in approved if (name := self._names.get(node)) is not None}

    def propose(self, plan: Plan) -> None:
        """From now on only nodes whose owners approve `plan` count as connected."""
        self._plan, self._answers = plan, {}

    def connected(self) -> dict[str, int]:
        """Return {NAME: node id} of the nodes that are there now and take part, sorted by name."""
        online = set(self.online)
        now = self._clock.now()
        self._identify([n for n in online if n not in self._names and now >= self._ask_at.get(n, now)])
        named = {name: node for node in online if (name := self._names.get(node)) is not None}
        online_names = named.keys()
        if self._plan is not None:
            # Who returns may have another policy, roster or text.
            self._answers = {node: answer for node, answer in self._answers.items() if node in online}
            self._propose(self._plan, named)
            named = {name: node for name, node in named.items() if self._answers.get(node) is Answer.APPROVED}
        for name in self._silent.now - online_names:
            self._silent.take_back(name)  # it has gone; once it is back it may answer
            self._refusals.forget(name)
        return dict(sorted((name, node) for name, node in named.items() if name not in self._silent.now))

    def note_answers(self, silent: Collection[str], refusing: Mapping[str, str] | None = None) -> None:
        """Note who did not answer in the last exchange: it is not asked for a while, each time for twice as long.

        It is asked earlier where too few others are there, if it answers a small query. refusing: NAME -> reason of who
        answered that it takes no part; it is asked anew whether it does, and where too few others are there, later.
        """
        over = self._silent.pass_one()
        self._refusals.forget_old()
        for name, reason in (refusing or {}).items() if self.can_change else ():
            self._refuse(name, reason)
        for name in silent:
            self._silent.leave_out(name)
        if silent:
            self.observer.silent(sorted(silent))
        for name in set(over) - self._answering(over):
            self._silent.leave_out(name)

    def wait_for(
        self, needed: int, excluded: Collection[str] = (), among: Collection[str] | None = None
    ) -> dict[str, int]:
        """Return the connected nodes but those `excluded` by NAME, once there are at least `needed`.

        among: no others are wanted.

        Raises:
            RoundError: too many refuse the plan, and nobody can change that while the run waits.
        """
        shown, started = -1, self._clock.now()
        while len(nodes := {k: v for k, v in self.connected().items() if _is_wanted(k, excluded, among)}) < needed:
            if len(nodes) != shown:
                shown = len(nodes)
                self.observer.waiting(shown, needed)
            self._tell_absent(among)
            if not self.can_change and self._clock.now() - started > _PATIENCE_S:
                self._refuse_hopeless(needed, excluded, among)
            self._pause()
        self._absent = {}
        self.waited_s += self._clock.now() - started if shown >= 0 else 0.0
        return nodes

    def absent(self) -> dict[str, str]:
        """Return why each owner of the plan takes no part at present, sorted by name; empty without a plan."""
        if self._plan is None:
            return {}
        nodes = {name: node for node in self.online if (name := self._names.get(node)) is not None}
        return {name: why for name in self._plan.members if (why := self._why_absent(name, nodes.get(name)))}

    def _why_absent(self, name: str, node: int | None) -> str:
        if node is None:
            return self._declined.get(name, "not connected")
        if self._told.get(node):
            return self._told[node]
        if name in self._silent.now:
            return self._refusals.reason(name) or "silent"
        return "" if self._answers.get(node) is Answer.APPROVED else "waits for its owner's approval"

    def _tell_absent(self, among: Collection[str] | None) -> None:
        """Say who is not there and why, each time that it changes; nothing while nobody has said anything."""
        found = {name: why for name, why in self.absent().items() if among is None or name in among}
        if found != self._absent and self._names:
            self._absent = found
            shown = dict(list(found.items())[:_SHOWN])
            if len(found) > _SHOWN:
                shown |= {f"{len(found) - _SHOWN} more": "not shown"}
            if shown:
                self.observer.absent(shown)

    def _refuse_hopeless(self, needed: int, excluded: Collection[str], among: Collection[str] | None) -> None:
        """Raise RoundError if too few members of the plan are left besides those that refused it."""
        if self._plan is None:
            return
        wanted = {name for name in self._plan.members if _is_wanted(name, excluded, among)}
        refused = {name: why for node, name in self._names.items() if name in wanted and (why := self._told.get(node))}
        if (left := len(wanted) - len(refused)) < needed:
            raise _too_few(needed, left, refused)

    def _refuse(self, name: str, reason: str) -> None:
        """Leave an owner out that refused: for some sums, or until it is worth asking again."""
        wait_s = self._refusals.note(name, reason)
        self._silent.leave_out(name)
        for node in [node for node, known in self._names.items() if known == name]:
            self._answers.pop(node, None)
        self.observer.held_out(name, wait_s)

    def wait_for_return(self, names: Collection[str], patience_s: float) -> dict[str, int]:
        """Return those of `names` that are connected, once all are or `patience_s` has passed."""
        deadline = self._clock.now() + patience_s
        while len(nodes := {k: v for k, v in self.connected().items() if k in names}) < len(names):
            if self._clock.now() >= deadline:
                break
            self._clock.wait(_POLL_S, deadline - self._clock.now())
        return nodes

    def pause(self) -> None:
        """Wait a moment for others to come; ask those who were silent whether they are back."""
        started = self._clock.now()
        self._pause()
        self.waited_s += self._clock.now() - started

    def _pause(self) -> None:
        now = self._clock.now()
        for name in self._silent.now & self._refusals.names:
            if self._refusals.is_due(name):
                self._silent.take_back(name)
        silent = self._silent.now - self._refusals.names
        if silent and now >= self._wake_at:
            for name in self._answering(silent):
                self._silent.take_back(name)
            self._wake_at = self._clock.now() + _WAKE_AGAIN_S
        self._clock.wait(_POLL_S, _WAKE_AGAIN_S if self._silent.now else math.inf)

    def _answering(self, names: Collection[str]) -> set[str]:
        """Return which of `names` answer a small query."""
        nodes = {node: name for node in self.online if (name := self._names.get(node)) in names}
        if not nodes:
            return set()
        requests = [Message(wire.IdentifyRequest().to_record(), node, wire.IDENTIFY) for node in nodes]
        replies = ask_nodes(self.grid, requests, self._patience_s(_WAKE_TIMEOUT_S))
        return {str(nodes[node]) for node, reply in replies if not reply.has_error()}

    def _identify(self, nodes: list[int]) -> None:
        if not nodes:
            return
        requests = [Message(wire.IdentifyRequest().to_record(), node, wire.IDENTIFY) for node in nodes]
        self._ask_at |= dict.fromkeys(nodes, self._clock.now() + _ASK_AGAIN_S)
        for node, reply in ask_nodes(self.grid, requests, self._patience_s(_IDENTIFY_TIMEOUT_S)):
            if reply.has_error():
                self._not_identified(node, error_of(reply)[0])
                continue
            try:
                said = wire.IdentifyReply.from_record(reply.content)
                name = said.name
            except WireError as error:  # its owner may start it anew under the same node id
                self._not_identified(node, str(error))
                continue
            registered = self.registered_name(node) if self.registered_name else self._attendees.name_of(node) or name
            if name != registered:
                self._names[node] = None
                self._not_identified(node, f"name: must be {registered!r} as registered, got {name!r}")
                continue
            if name in self._names.values():
                self._forget(name)
            self._names[node] = name
            self._told.pop(node, None)
            self.observer.connected(name)
            self.observer.identified(name, said.software)

    def _not_identified(self, node: int, reason: str) -> None:
        self._told[node] = reason
        self.observer.refused(self._attendees.name_of(node) or f"node {node}", reason)

    def _propose(self, plan: Plan, named: Mapping[str, int]) -> None:
        """Ask those who have not approved what their owners say; who has refused is asked once."""
        names, now = {node: name for name, node in named.items()}, self._clock.now()
        open_nodes = [n for n in names if self._answers.get(n, Answer.PENDING) is Answer.PENDING]
        asked = [node for node in open_nodes if now >= self._ask_at.get(node, now) or node not in self._answers]
        if not asked:
            return
        requests = [Message(wire.ProposeRequest(plan.to_json()).to_record(), node, wire.PROPOSE) for node in asked]
        for node, reply in ask_nodes(self.grid, requests, self._patience_s(_PROPOSE_TIMEOUT_S)):
            answer, keeps_model, reason = _answer(reply)
            (self._keepers.add if keeps_model else self._keepers.discard)(node)
            if reason and self._told.get(node) != reason:
                self.observer.refused(names[node], reason)
            elif answer is Answer.PENDING and node not in self._answers:
                self.observer.pending(names[node], plan.run_id)
            self._answers[node], self._told[node] = answer, reason
        self._ask_at |= dict.fromkeys(asked, self._clock.now() + _PROPOSE_AGAIN_S)

    def _patience_s(self, timeout_s: float) -> float:
        return self.grid.patience_s(timeout_s) if isinstance(self.grid, PatientGrid) else timeout_s

    def _forget(self, name: str) -> None:
        """A node that comes back under a new node id replaces its old one."""
        self._names = {node: known for node, known in self._names.items() if known != name}


def _answer(reply: Message) -> tuple[Answer, bool, str]:
    """Return what a node's owner says to a plan, whether it keeps the model, and why it takes no part, if it says so.

    Who cannot answer, or must not, is asked again: its owner may start it anew with another policy.
    """
    if reply.has_error():
        return Answer.PENDING, False, error_of(reply)[0]
    try:
        said = wire.ProposeReply.from_record(reply.content)
    except WireError as error:
        return Answer.PENDING, False, str(error)
    return said.answer, said.keeps_model, "its owner has refused the plan" if said.answer is Answer.REFUSED else ""


def _too_few(needed: int, left: int, reasons: Mapping[str, str]) -> RoundError:
    shown = [f"{name}: {why}" for name, why in sorted(reasons.items())[:_SHOWN]]
    line = f"too few owners take part: a sum needs {needed}, {left} are left"
    return RoundError("AGFL-ROUND-001", "; ".join([line, *shown]))


def _is_wanted(name: str, excluded: Collection[str], among: Collection[str] | None) -> bool:
    return name not in excluded and (among is None or name in among)
