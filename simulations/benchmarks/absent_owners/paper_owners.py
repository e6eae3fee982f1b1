"""Owners that train nothing and mask nothing, but keep their ledgers and hold to their plans; and sums over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from agfl_client.ledger.ledger import Ledger
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SumRules
from agfl_client.secure.sum_rules import sum_rules
from agfl_models.errors import AgflError
from agfl_protocol.messages.secure_wire import exchange_of
from agfl_protocol.messages.wire import RoundRequest, SumRequest
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_protocol.plans.groups import is_union
from agfl_protocol.plans.plan import Plan
from agfl_protocol.secagg.errors import require
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.rounds.journal import Records


@dataclass
class PaperOwner:
    """One owner, with its real ledger: what it checks in each trip, as `masking.py` does of messages."""

    name: str
    plan: Plan
    policy: Policy
    parameters: Parameters
    ledger: Ledger
    rules: SumRules | None = None
    members: int = 0

    @staticmethod
    def of(name: str, plan: Plan, policy: Policy, parameters: Parameters, folder: Path) -> PaperOwner:
        """Make one with a new ledger."""
        folder.mkdir(parents=True)
        return PaperOwner(name, plan, policy, parameters, Ledger(folder, name))

    def announce(self, request: SumRequest, rules: SumRules) -> None:
        """Trip 1."""
        exchange = exchange_of(request)
        self.ledger.check_announce(exchange, self.policy, rules.asked.stage)
        self.policy.check_pairs(self.ledger.pairs(request.run_id, self.name).k)
        self.ledger.announce(exchange, rules.asked, self.policy)
        self.rules = rules

    def share(self, members: Collection[str]) -> None:
        """Trip 2."""
        assert self.rules is not None
        require(self.rules.drawn.issuperset(members), "AGFL-SECURE-039", "members: must be among the plan's draw")
        require(len(members) >= self.parameters.min_cohort, "AGFL-SECURE-040", "members: must be at least min_cohort")
        self.members = len(members)

    def mask(self, request: SumRequest, dealers: Collection[str]) -> None:
        """Trip 3."""
        self._check(dealers)
        self.ledger.leave(exchange_of(request), dealers)

    def agree(self, request: SumRequest, survivors: Collection[str]) -> None:
        """Trip 4."""
        self._check(survivors)
        self.ledger.sign(exchange_of(request), survivors)

    def unmask(self, request: SumRequest) -> None:
        """Trip 5."""
        self.ledger.open(exchange_of(request))

    def _check(self, names: Collection[str]) -> None:
        assert self.rules is not None
        require(
            len(names) >= self.parameters.least_survivors(self.members), "AGFL-SECURE-041", "survivors: must be enough"
        )
        require(
            not self.rules.groups or is_union(names, self.rules.groups),
            "AGFL-SECURE-042",
            "survivors: must be whole groups",
        )


@dataclass(frozen=True)
class OneLane:
    """The codec of a sum of nothing."""

    num_lanes: int = 1

    def check(self, lanes: Lanes) -> None:
        """There is nothing to see."""


@dataclass(frozen=True)
class Lost:
    """Which replies are lost."""

    rng: np.random.Generator
    share: float

    def __call__(self) -> bool:
        """Whether one is."""
        return bool(self.rng.random() < self.share)


@dataclass
class PaperSum:
    """The trips of `SecureSum` without their content. refusals: of any owner, by their lines; there should be none."""

    owners: Mapping[str, PaperOwner]
    parameters: Parameters
    lost: Lost
    exchanges: int = 0
    spent: int = 0
    refusals: Counter[str] = field(default_factory=Counter)

    def requiring(self, min_cohort: int) -> PaperSum:
        """Part of the interface."""
        raise NotImplementedError

    def sum(
        self,
        grid: Grid,
        cohort: Mapping[str, int],
        request: SumRequest,
        codec: LaneCodec,
        timeout_s: float,
        groups: Groups = (),
        records: Records | None = None,
    ) -> CohortSum:
        """Lead the cohort through the trips; raises AttemptFailed as `SecureSum`."""
        self.exchanges += 1
        owners = self.owners
        u1 = self._trip(cohort, self._announce(request))
        self._require(len(u1), self.parameters.min_cohort, "U1", request, is_spent=False)
        least = self.parameters.least_survivors(len(u1))
        u2 = _whole(self._trip(u1, lambda name: owners[name].share(u1)), groups)
        self._require(len(u2), least, "U2", request, is_spent=False)
        u3 = _whole(self._trip(u2, lambda name: owners[name].mask(request, u2)), groups)
        self._require(len(u3), least, "U3", request, is_spent=True)
        signed = self._trip(u3, lambda name: owners[name].agree(request, u3))
        self._require(len(signed), self.parameters.quorum(len(u1)), "signatures", request, is_spent=True)
        opened = self._trip(signed, lambda name: owners[name].unmask(request))
        self._require(len(opened), self.parameters.threshold, "openings", request, is_spent=True)
        return CohortSum(request.exchange, np.zeros(1, np.uint64), u3, {}, 0, 0)

    def _announce(self, request: SumRequest) -> Callable[[str], None]:
        """All owners of a case have the same plan and policy, so the rules of a request are found once."""
        assert isinstance(request, RoundRequest)
        first = next(iter(self.owners.values()))
        config = client_plan_from_json(request.client_plan)
        try:
            rules = sum_rules(first.plan, config, request, first.policy, None)
        except AgflError as error:
            self.refusals[str(error)] += 1
            raise AttemptFailed.of(error, error.sentence) from None
        return lambda name: self.owners[name].announce(request, rules)

    def _trip(self, names: Collection[str], take: Callable[[str], None]) -> tuple[str, ...]:
        """Return those who answered and were heard."""
        heard = []
        for name in sorted(names):
            try:
                take(name)
            except AgflError as error:
                self.refusals[f"{type(error).__name__}: {str(error)[:100]}"] += 1
                continue
            if not self.lost():
                heard.append(name)
        return tuple(heard)

    def _require(self, got: int, minimum: int, what: str, request: SumRequest, *, is_spent: bool) -> None:
        if got < minimum:
            self.spent += is_spent
            raise AttemptFailed(
                "AGFL-ROUND-023", f"{what}: must be at least {minimum}, got {got}", {}, is_spent=is_spent
            )


def _whole(names: Collection[str], groups: Groups) -> tuple[str, ...]:
    whole = {name for group in groups if set(names).issuperset(group) for name in group}
    return tuple(name for name in names if name in whole or not groups)
