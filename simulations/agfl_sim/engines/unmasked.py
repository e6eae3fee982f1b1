"""A secure sum of simulated owners without its masks: the same integers, the owners' own checks, two trips for five.

It shows nobody's security and protects nobody: whoever runs a simulation has all text in any case. What is left out is
what a cohort of n needs n^2 of: keys, shares, masks and signatures. Both halves are here, and only a simulation has
them: a deployed node answers with masked vectors or not at all, and a deployed server asks for nothing else.

 1 train   every client trains, writes its ledger, and sends its vector
 2 agree   each checks who is in the sum, as it would before a mask and a signature, and writes its ledger
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from agfl_client.secure import masking
from agfl_client.secure.masking_states import Terms
from agfl_client.secure.secure_member import SecureMember, SumRules
from agfl_protocol.messages import secure_wire, wire
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.messages import AgreeRequest, KeyRecord, MaskReply
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.aggregation.secure_sum import SecureSum, Talk, check_count, outside_whole_groups
from agfl_server.rounds.journal import Records
from agfl_server.transport.limits import vector_reply_bytes

_RINGS = "rings"  # of an elastic model: deployed clients seal them for each other


class UnmaskedMember(SecureMember):
    """A simulated owner's part in a sum without masks."""

    _terms: Terms | None = None

    def advertise(self, request: wire.SumRequest, rules: SumRules, lanes: Lanes, rings: int = 1) -> RecordDict:
        """Trip 1. The exchange is in the ledger before this returns; raises as that of `SecureMember`."""
        self._terms = self._announced(request, rules, rings)
        record = secure_wire.write_mask_reply(MaskReply(self._terms.exchange, lanes))
        record[_RINGS] = ConfigRecord({_RINGS: [rings]})
        return record

    def agree(self, record: RecordDict) -> RecordDict:
        """Trip 2: check who is in the sum by every rule that needs no secret; the ledger is as after all five trips.

        Raises:
            ProtocolViolation: names the check that failed.
        """
        terms, self._terms = self._terms, None
        request = secure_wire.read_agree_request(record)
        assert terms is not None, "the grid is this run's own"
        assert request.exchange == terms.exchange, request.exchange
        names = request.survivors
        rings = dict(zip(names, cast(list[int], record[_RINGS][_RINGS]), strict=True))
        members = _alike(names, terms.parameters)
        masking.check_drawn(names, terms)
        masking.check_survivors("survivors", names, members.records, "U1", terms, members)
        masking.check_filled(rings, terms, members, "U1")
        self.ledger.leave(terms.exchange, names)
        self.ledger.sign(terms.exchange, names)
        self.ledger.open(terms.exchange)
        return wire.acknowledgment()

    def forget(self) -> None:
        """As of `SecureMember`."""
        super().forget()
        self._terms = None


class UnmaskedSum(SecureSum):
    """The server half."""

    def sum(
        self,
        grid: Grid,
        cohort: Mapping[str, int],
        request: wire.SumRequest,
        codec: LaneCodec,
        timeout_s: float,
        groups: Groups = (),
        records: Records | None = None,
    ) -> CohortSum:
        """Return the sum; arguments and errors as of `SecureSum`, but nothing is kept for a crash."""
        exchange = secure_wire.exchange_of(request)
        talk = Talk(grid, cohort, self.observer, exchange)
        try:
            lanes, rings = self._collect(talk, request, codec.num_lanes, timeout_s, groups)
        except AttemptFailed as error:
            error.silent, error.refusing = frozenset(talk.silent), talk.own_refusals
            raise
        try:
            self._confirm(talk, rings)
            check_count(lanes, tuple(rings), talk)
        except AttemptFailed as error:
            error.is_spent = True
            error.silent, error.refusing = frozenset(talk.silent), talk.own_refusals
            raise
        silent, sent = frozenset(talk.silent), (talk.bytes_up, talk.bytes_down)
        return CohortSum(exchange.exchange, lanes, tuple(rings), talk.refused, *sent, silent, talk.own_refusals)

    def _collect(
        self, talk: Talk, request: wire.SumRequest, num_lanes: int, timeout_s: float, groups: Groups
    ) -> tuple[Lanes, dict[str, int]]:
        """Trip 1: return the sum of the vectors, and who is in it, sorted, with its number of rings.

        A partial sum is kept of each group, since one that lost somebody stays out whole.
        """
        group_of = {name: number for number, group in enumerate(groups) for name in group}
        sums: dict[int, Lanes] = {}
        rings: dict[str, int] = {}
        enough, size = self.parameters.least_survivors(len(talk.cohort)), vector_reply_bytes(num_lanes)
        contents = dict.fromkeys(sorted(talk.cohort), request.to_record())
        for name, reply in talk.ask(request.kind, contents, timeout_s, enough, size):
            with talk.refusing(name):
                lanes, group = secure_wire.read_mask_reply(reply, talk.exchange, num_lanes).lanes, group_of.get(name, 0)
                (rings[name],) = cast(list[int], reply[_RINGS][_RINGS])
                if group in sums:
                    sums[group] += lanes
                else:
                    sums[group] = lanes.copy()
                self.observer.client_finished(name)
                self.observer.replied(name)
                del lanes
            del reply  # a vector, before the next one
        for name in outside_whole_groups(rings, groups):
            talk.refuse(name, "group: must be there whole in a sum of this kind; somebody of it is missing")
            del rings[name]
            sums.pop(group_of[name], None)
        least = self.least(_alike(rings, self.parameters)) if rings else self.parameters.min_cohort
        talk.require(len(rings), least, "U1, clients that sent a vector")
        total, *others = sums.values()
        for lanes in others:
            total += lanes
        return total, dict(sorted(rings.items()))

    def _confirm(self, talk: Talk, rings: Mapping[str, int]) -> None:
        """Trip 2: raise AttemptFailed unless a quorum agrees with who is in the sum."""
        content = secure_wire.write_agree_request(AgreeRequest(talk.exchange, tuple(rings)))
        content[_RINGS] = ConfigRecord({_RINGS: list(rings.values())})
        quorum = self.parameters.quorum(len(rings))
        agreed = list(talk.ask_all(secure_wire.AGREE, content, list(rings), self.trip_timeout_s, quorum))
        talk.require(len(agreed), quorum, "owners that agree with U3")


def _alike(names: Collection[str], own: Parameters) -> Members:
    """Return a cohort whose owners all have one policy, as those of a simulation do."""
    record = KeyRecord("", b"", b"", b"", own.max_colluders, own.min_cohort, b"")
    return Members(dict.fromkeys(names, record), {}, b"")
