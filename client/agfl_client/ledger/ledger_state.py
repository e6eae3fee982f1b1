"""What follows from an owner's ledger: the last exchange of each run, what left, and pairs of sums by owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agfl_client.ledger.ledger_file import LEDGER_FILE
from agfl_models.errors import ConfigError
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.errors import ProtocolViolation

APPROVED, ANNOUNCED, LEFT, SIGNED, OPENED = "approved", "announced", "left", "signed", "opened"


@dataclass(frozen=True)
class Asked:
    """What an exchange asks of this owner.

    kind: of the sum. cohort: how many owners it has room for; drawn: whom the plan draws, None for all. examples: that
    are drawn, None for all there are. stage: of what the rounds are numbers, such as a candidate of a search. request:
    SHA-256 of the broadcast; merges: of the tokenizer's merges, None while there are none; both in hexadecimal.
    """

    kind: Kind
    train: bool = field(kw_only=True)
    evaluate: bool = field(kw_only=True)
    count: bool = field(kw_only=True)
    cohort: int
    drawn: tuple[str, ...] | None = None
    examples: int | None = None
    stage: str = ""
    request: str = ""
    merges: str | None = None

    def to_fields(self) -> dict[str, Any]:
        """Return the fields of the ledger's line."""
        asked = [name for name in ("train", "evaluate", "count") if getattr(self, name)]
        fields = {"asked": asked, "kind": self.kind.value, "cohort": self.cohort, "examples": self.examples}
        drawn = None if self.drawn is None else list(self.drawn)
        return {**fields, "drawn": drawn, "stage": self.stage, "request": self.request, "merges": self.merges}


class Pairs(NamedTuple):
    """Sums with and without one owner; k of them could be set against each other: 2 with without / (with + without)."""

    with_it: int
    without: int

    @property
    def k(self) -> float:
        """The pairs."""
        both = self.with_it + self.without
        return 2 * self.with_it * self.without / both if both else 0.0


@dataclass
class Run:
    """What is known of a run. Sets of names are bits, by the order in which names came up."""

    plan: str | None = None
    merges: str | None = None
    last: ExchangeId | None = None
    stage: str = ""
    kind: Kind = Kind.EXACT
    dealers: int = 0
    has_signed: bool = False
    is_opened: bool = False
    names: dict[str, int] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    signed: dict[int, int] = field(default_factory=dict)
    sampled: set[int] = field(default_factory=set)
    announcements: Counter[tuple[str, int]] = field(default_factory=Counter)
    uploads: Counter[tuple[str, int]] = field(default_factory=Counter)

    def bits(self, names: Collection[str]) -> int:
        """Return the set of these names."""
        return sum(1 << self.names.setdefault(name, len(self.names)) for name in set(names))

    def take(self, entry: Mapping[str, Any]) -> None:
        """Go on by one line."""
        event = entry["event"]
        if event == APPROVED:
            self.plan = entry["plan"]
            return
        exchange = ExchangeId(entry["run"], entry["round"], entry["exchange"])
        place = (self.stage, exchange.round)
        if event == ANNOUNCED:
            place = (entry["stage"], exchange.round)
            self.last, self.stage, self.kind = exchange, entry["stage"], Kind(entry["kind"])
            self.merges = self.merges or entry["merges"]
            self.has_signed = self.is_opened = False
            self.announcements[place] += 1
        elif event == LEFT:
            self.left.add(exchange.exchange)
            self.dealers = self.bits(entry["names"])
            self.uploads[place] += 1
        elif event == SIGNED:
            self.signed[exchange.exchange] = self.dealers & ~self.bits(entry["lost"])
            self.has_signed = True
            if self.kind is Kind.SAMPLED:
                self.sampled.add(exchange.exchange)
        elif event == OPENED:
            self.is_opened = True


class History:
    """What the lines of a ledger, that of the owner `own_name`, say of each run.

    Raises:
        ConfigError: a line is not as a node writes them.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]], own_name: str) -> None:
        self.own_name = own_name
        self._runs: dict[str, Run] = {}
        for entry in entries:
            try:
                self._run(entry["run"]).take(entry)
            except (KeyError, TypeError, ValueError, AttributeError, ProtocolViolation):
                rule = "must be a line as this node writes them; it is not"
                raise ConfigError("AGFL-CONFIG-065", f"{LEDGER_FILE}:{entry['n']}: {rule}") from None

    def runs(self) -> tuple[str, ...]:
        """Return the runs that the ledger knows, in the order in which they came up."""
        return tuple(self._runs)

    def plan(self, run_id: str) -> str | None:
        """Return the hash of the plan under which a run is served."""
        return self._runs[run_id].plan if run_id in self._runs else None

    def merges(self, run_id: str) -> str | None:
        """Return the SHA-256 of the merges with which a run first asked for something."""
        return self._runs[run_id].merges if run_id in self._runs else None

    def last_exchange(self, run_id: str) -> ExchangeId | None:
        """Return the last exchange that was answered."""
        return self._runs[run_id].last if run_id in self._runs else None

    def has_left(self, run_id: str, exchange: int) -> bool:
        """Whether this node's vector left in an exchange."""
        return run_id in self._runs and exchange in self._runs[run_id].left

    def announcements(self, run_id: str, round_number: int, stage: str = "") -> int:
        """Return how often exchanges of a round were answered."""
        return self._runs[run_id].announcements[stage, round_number] if run_id in self._runs else 0

    def uploads(self, run_id: str, round_number: int, stage: str = "") -> int:
        """Return how many vectors left for a round."""
        return self._runs[run_id].uploads[stage, round_number] if run_id in self._runs else 0

    def signed(self, run_id: str) -> dict[int, frozenset[str]]:
        """Return U3 of each exchange that this node signed."""
        run = self._runs.get(run_id, Run())
        return {exchange: frozenset(self._names_of(run, names)) for exchange, names in run.signed.items()}

    def pairs(self, run_id: str, name: str, every: int = 1) -> Pairs:
        """Return how many sampled sums of a run there were with and without an owner, as far as this node can know.

        Of others it knows the sums that it signed. Without itself there may have been one for each number that it did
        not sign; every: of so many numbers one asks its group, and the others have nothing of it.
        """
        run = self._runs.get(run_id, Run())
        if name == self.own_name:
            last = run.last.exchange if run.last is not None else 0
            signed = len(run.signed) if every == 1 else len(run.sampled)
            return Pairs(len(run.sampled), max(-(-last // every) - signed, 0))
        bit = 1 << run.names[name] if name in run.names else 0
        with_it = sum(1 for exchange in run.sampled if run.signed[exchange] & bit)
        return Pairs(with_it, len(run.sampled) - with_it)

    def _run(self, run_id: str) -> Run:
        return self._runs.setdefault(run_id, Run())

    @staticmethod
    def _names_of(run: Run, bits: int) -> set[str]:
        return {name for name, place in run.names.items() if bits >> place & 1}
