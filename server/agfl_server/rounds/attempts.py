"""How a sum comes about: draw a cohort, broadcast, sum; again in the next exchange while too few clients answer.

Once a vector may have left a client, its exchange is used up: the round goes on under the next number, so that no
client ever answers twice with the same randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from flwr.serverapp import Grid

from agfl_models.errors import ImplausibleSum, RoundError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.plans.groups import Names
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.lanes import Lanes
from agfl_server.aggregation.aggregator import Aggregator, AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.rounds.journal import Entry, Journal
from agfl_server.rounds.observer import IMPLAUSIBLE, Observer
from agfl_server.rounds.sampling import Draw, sample_cohort
from agfl_server.rounds.suspects import Suspects
from agfl_server.transport.connected_nodes import ConnectedNodes

CodecT = TypeVar("CodecT", bound=LaneCodec)
SumT = TypeVar("SumT")
_RETURN_S = 30.0  # patience for the clients of an exchange that a crash of this server has cut short


@dataclass(frozen=True)
class RunContext:
    """What every sum of a run needs: its configuration, whoever is connected, and the rules for who takes part.

    plan: what every owner approved. members: sums are over exactly these, if given. num_owners: that can ever take
    part; None where nobody knows. suspects: what past sums say of who lies.
    """

    config: RunConfig
    grid: Grid
    nodes: ConnectedNodes
    aggregator: Aggregator
    observer: Observer
    min_cohort: int
    journal: Journal
    plan: Plan
    members: frozenset[str] | None = None
    num_owners: int | None = None
    suspects: Suspects = field(default_factory=Suspects)

    def cannot_do_without(self, excluded: Collection[str], kind: Kind = Kind.SAMPLED) -> bool:
        """Whether no sum of a kind can come about any more without these owners."""
        if not excluded or self.members is not None:
            return bool(excluded)  # a sum needs all members
        if groups := self.groups(kind):
            return sum(len(group) for group in groups if not set(excluded).intersection(group)) < self.min_cohort
        return self.num_owners is not None and self.num_owners - len(excluded) < self.min_cohort

    def groups(self, kind: Kind) -> Groups:
        """Return the groups of which whole ones alone may be in a sum of this kind; none where any owners may."""
        return self.plan.groups if kind is Kind.EXACT else ()

    def has_whole_group(self) -> bool:
        """Whether a sum over whole groups can come about now; any will do where there are none."""
        there = {n: node for n, node in self.nodes.connected().items() if n not in self.suspects.left_out()}
        return not self.plan.groups or bool(_enough(self, Kind.EXACT, there, ()))


@dataclass(frozen=True)
class Request:
    """What is to be summed. round: for which; kind: by which rule; all_owners: whoever is there, instead of a draw.

    after: the last exchange that the model has behind it. max_attempts: instead of that of the run. group: the sum is
    over its owners alone; it is not waited for.
    """

    round: int
    after: int
    kind: Kind
    all_owners: bool = False
    max_attempts: int | None = None
    group: Names | None = None


Broadcast = Callable[[Entry, int], tuple[wire.SumRequest, CodecT]]
Decode = Callable[[CodecT, Lanes], Callable[[], SumT]]  # reads the lanes, and returns what does the rest without them


def sum_in_attempts(
    context: RunContext, wanted: Request, broadcast: Broadcast[CodecT], decode: Decode[CodecT, SumT]
) -> tuple[CodecT, SumT, CohortSum]:
    """Return a sum of round `wanted.round`; `broadcast` makes the request and its codec, `decode` what it sums to.

    The lanes, as large as the model, are let go of once `decode` has read them; those of one group are returned.

    It is given the exchange, with its cohort and whoever was refused in earlier ones of this round, and for how many
    clients the sum has room. A sum that no honest owners have is lost; the next ones leave out groups to find the liar.

    Raises:
        RoundError: after `max_attempts` attempts, or where too few are left without those who broke the protocol, with
            the reasons of the last; of a kind of its own, if `decode` raised that. Attempts that were lost to a lie do
            not count while leaving out groups may help.
    """
    aggregation, journal, suspects = context.config.aggregation, context.journal, context.suspects
    excluded: set[str] = set()
    tried = lied = waited = 0
    while True:
        tried += 1
        entry, cohort = _cohort(context, wanted, excluded, lied)
        room = context.plan.room(all_owners=wanted.all_owners) if context.plan.groups else len(entry.cohort)
        request, codec = broadcast(entry, room)
        digest = request.broadcast_hash.hex()
        if entry.request not in ("", digest):  # what was asked cannot be asked again: something changed
            journal.close(wanted.round, entry.refused)
            tried -= 1
            continue
        records = journal.open(replace(entry, is_open=True, request=digest))
        groups, timeout_s = context.groups(wanted.kind), aggregation.round_timeout_s
        try:
            decoded, found = _decoded(
                context.aggregator.sum(context.grid, cohort, request, codec, timeout_s, groups, records),
                partial(decode, codec),
                keeps_lanes=wanted.group is not None,
            )
            context.nodes.note_answers(found.silent, found.refusing)
            if some := suspects.note_good(found.survivors):
                context.observer.suspected(some)
            return codec, decoded, found
        except AttemptFailed as error:
            lied += _noted(context, wanted, entry, error)
            excluded |= error.guilty
            # Who refuses is waited for, as one that was killed; but others must not send vector after vector for it.
            waited += bool(error.refusing) and not error.is_spent and context.nodes.can_change
            is_over = context.cannot_do_without(excluded, wanted.kind)
            if is_over or _is_hopeless(context, wanted, error, tried - lied - waited, lied):
                # What comes next may be another round, or of another kind: clients would refuse it under this number.
                journal.close(wanted.round, frozenset(entry.refused) | error.refused.keys())
                attempts = "1 attempt, " if tried == 1 else f"{tried} attempts, the last "
                line = f"round {wanted.round}: failed in {attempts}because {error.sentence}"
                raise _as_it_ends(context, error, line) from None


def _noted(context: RunContext, wanted: Request, entry: Entry, error: AttemptFailed) -> bool:
    """Note in the journal, and wherever else, how an exchange failed; return whether by a lie."""
    refused = frozenset(entry.refused) | error.refused.keys()
    if error.is_spent:
        context.journal.close(wanted.round, refused)
    else:
        context.journal.open(replace(entry, is_open=True, request="", refused=tuple(sorted(refused))))
    context.nodes.note_answers(error.silent, error.refusing)
    for name in error.guilty:
        context.suspects.proven.leave_out(name)
    if error.bad and error.kind is ImplausibleSum:
        context.observer.implausible(wanted.round, str(error))
    # Of one group, numbers that are not finite are as likely honest.
    is_lie = error.bad and (error.kind is ImplausibleSum or wanted.group is None)
    if is_lie and (some := context.suspects.note_bad(error.bad)):
        context.observer.suspected(some)
    context.observer.repeated(wanted.round, entry.exchange, str(error))
    return bool(error.bad)


def _as_it_ends(context: RunContext, error: AttemptFailed, line: str) -> RoundError:
    """Return what ends a round; where a lie did, and nobody knows whose, it names all that may have told it."""
    if not error.bad:
        return RoundError.of(error, line)
    if error.kind is not ImplausibleSum:
        return error.kind.of(error, line)
    names = ", ".join(context.suspects.suspected(error.bad))
    return ImplausibleSum.of(error, f"{line}; {IMPLAUSIBLE}: one of {names}")


def _is_hopeless(context: RunContext, wanted: Request, error: AttemptFailed, lost: int, lied: int) -> bool:
    """Whether to give up after an attempt; lost, lied: how many failed of themselves, and by a lie."""
    most = wanted.max_attempts or context.config.aggregation.max_attempts
    if not error.bad:
        return lost >= most
    if error.kind is not ImplausibleSum and not context.plan.groups:
        return True  # each owner spoke for itself
    if lied < most:
        return False
    if error.kind is not ImplausibleSum or context.members is not None or wanted.max_attempts is not None:
        return True
    is_over = lied >= most + len(context.plan.groups)
    return is_over or context.suspects.probe(error.bad, context.min_cohort, lied) is None


def _decoded(
    found: CohortSum, decode: Callable[[Lanes], Callable[[], SumT]], *, keeps_lanes: bool
) -> tuple[SumT, CohortSum]:
    """Return what a sum says; none of it is held here once it is refuted, since the next attempt has one of its own.

    Raises:
        AttemptFailed: no honest owners have such a sum.
    """
    try:
        rest = decode(found.lanes)
        if not keeps_lanes:
            found = replace(found, lanes=found.lanes[:0].copy())
        return rest(), found
    except ImplausibleSum as error:
        failed = AttemptFailed.of(error, error.sentence, found.refused, is_spent=True, bad=found.survivors)
        failed.silent, failed.kind = found.silent, type(error)
    raise failed


def _cohort(context: RunContext, wanted: Request, excluded: Collection[str], lied: int) -> tuple[Entry, dict[str, int]]:
    """Return the exchange that is next, and who takes part in it: {NAME: node id}. lied: bad sums of this round."""
    entry = context.journal.current(wanted.after)
    if wanted.group is not None and not set(wanted.group).issuperset(entry.cohort):
        context.journal.close(wanted.round, entry.refused)  # of another group, which is not there any more
        entry = context.journal.current(wanted.after)
    if entry.is_open and entry.request:
        context.nodes.invite_again(entry.cohort)
        return entry, context.nodes.wait_for_return(entry.cohort, _RETURN_S)
    while wanted.group is not None and context.plan.draw(entry.exchange) != wanted.group:
        entry = replace(entry, exchange=entry.exchange + 1)
    refused = context.journal.refused(wanted.round)
    invited = _invited(context, Draw(context.config.seed, entry.exchange, excluded, refused))
    if invited is not None:  # others have taken the place of who refuses: nobody waits for one device of many
        return replace(entry, round=wanted.round, refused=tuple(sorted(refused)), cohort=tuple(invited)), invited
    missing: Sequence[str] = ()
    while True:
        drawn, config = _drawn(context, wanted, entry.exchange), context.config
        nodes = context.nodes.wait_for(context.min_cohort, excluded, context.members)
        if drawn is None:
            size = None if wanted.all_owners else config.aggregation.cohort_size
            cohort = sample_cohort(nodes, size, config.seed, entry.exchange, refused)
        else:
            there = {name: node for name, node in nodes.items() if name in drawn}
            cohort = _enough(context, wanted.kind, there, refused)
            if context.members is None:
                cohort = _without_suspects(context, wanted.kind, there, cohort, lied)
        if len(cohort) >= context.min_cohort:
            names = tuple(cohort)
            return replace(entry, round=wanted.round, refused=tuple(sorted(refused)), cohort=names), cohort
        if wanted.group is not None:
            few = f"{context.min_cohort} owners of {', '.join(wanted.group)} must be there, {len(cohort)} are"
            raise RoundError("AGFL-ROUND-019", f"round {wanted.round}: {few}")
        if drawn is not None and len(drawn) < len(context.plan.members):
            entry = replace(entry, exchange=entry.exchange + 1)  # too few of this draw are there
        elif drawn is not None and missing != (missing := sorted(set(drawn) - nodes.keys())):
            context.observer.missing(missing)
        context.nodes.pause()


def _invited(context: RunContext, draw: Draw) -> dict[str, int] | None:
    """Return who is invited to an exchange: never all, whatever is summed; None where whoever is connected may come."""
    size = context.config.aggregation.cohort_size if context.members is None else None
    return context.nodes.invite(context.members, size, context.min_cohort, draw)


def _without_suspects(
    context: RunContext, kind: Kind, there: Mapping[str, int], cohort: dict[str, int], lied: int
) -> dict[str, int]:
    """Return `cohort`, of those who are there, without groups and owners who may have lied, if there are enough."""
    absent = context.suspects.left_out()
    if absent:
        cohort = _enough(context, kind, {n: node for n, node in there.items() if n not in absent}, ()) or cohort
    out = context.suspects.probe(cohort, context.min_cohort, lied) or ()
    return {name: node for name, node in cohort.items() if name not in out}


def _drawn(context: RunContext, wanted: Request, exchange: int) -> Collection[str] | None:
    """Return who may take part by the plan; None where sums are plain: then whoever is there."""
    plan = context.plan
    if not plan.groups:
        return None
    if wanted.all_owners and not plan.is_by_group:
        return plan.members
    return plan.draw_groups(exchange) if wanted.kind is Kind.EXACT else plan.draw(exchange)


def _enough(context: RunContext, kind: Kind, nodes: Mapping[str, int], refused: Collection[str]) -> dict[str, int]:
    """Return who of `nodes` is asked: in an exact sum whole groups; without the refused while there are enough."""
    others = {name: node for name, node in nodes.items() if name not in refused}
    for some in (others, dict(nodes)):
        whole = some
        if groups := context.groups(kind):
            whole = {n: some[n] for group in groups if all(n in some for n in group) for n in group}
        if len(whole) >= context.min_cohort:
            return dict(sorted(whole.items()))
    return {}
