"""Counting pairs of tokens before round 1: the request, and the vector of integers that answers it.

Which pairs are counted follows from the merges. K = 256 + m ids are known, the bytes and m merges; `place` is an id's
index among them. The first request (m = 0) asks for all pairs of bytes (u, v), in cell 256 place(u) + place(v). Each
later one asks for the pairs that hold one of the n newest tokens: (u, v) where v is the j-th of them, from 0, in cell
j K + place(u), and after these (u, v) where only u is, the j-th, in cell n K + j (K - n) + place(v). What is left of
all other pairs follows from these (`agfl_models.tokenizers.bpe.PairTable`), so no pair is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from agfl_models.errors import ImplausibleSum, WireError
from agfl_models.tokenizers.tokenizer import FIRST_MERGE, MAX_MERGES_PER_ROUND, MAX_VOCAB_SIZE, NUM_BYTES, Pair
from agfl_protocol.messages.wire import Scalar, new_record, read_bounded, read_scalar, read_vector
from agfl_protocol.plans.client_plan import hash_of
from agfl_protocol.secagg.context import CountBroadcast
from agfl_protocol.secagg.lanes import Lanes

COUNT = "query.count"
_NUM_MARKS = FIRST_MERGE - NUM_BYTES  # ids that stand in no word
_MAX_MERGES = MAX_VOCAB_SIZE - FIRST_MERGE


@dataclass(frozen=True)
class CountRequest:
    """Server to each client of a cohort: cut your training text up by `merges` and count.

    num_new: of the merges, those whose tokens are to be counted, 0 where there are none; max_cohort: clients that the
    sum has room for.
    """

    run_id: str
    round: int
    exchange: int
    plan_hash: str
    client_plan: str
    merges: tuple[Pair, ...]
    num_new: int
    max_cohort: int

    @property
    def kind(self) -> str:
        """The message type."""
        return COUNT

    @property
    def client_plan_hash(self) -> str:
        """SHA-256 of the client plan, in hexadecimal."""
        return hash_of(self.client_plan)

    @property
    def first_new(self) -> int:
        """The lowest id whose pairs are counted; 0 for all of them."""
        return FIRST_MERGE + len(self.merges) - self.num_new if self.num_new else 0

    @property
    def broadcast_hash(self) -> bytes:
        """SHA-256 of all that this request says and every client must have received alike."""
        return CountBroadcast(self.plan_hash, self.client_plan, self.num_new, self.max_cohort, _flat(self.merges)).hash

    def to_record(self) -> RecordDict:
        """Return the message content."""
        scalars: dict[str, Scalar] = {
            "run_id": self.run_id,
            "round": self.round,
            "exchange": self.exchange,
            "plan_hash": self.plan_hash,
            "client_plan": self.client_plan,
            "num_new": self.num_new,
            "max_cohort": self.max_cohort,
        }
        return new_record(scalars, {"merges": _flat(self.merges)})

    @staticmethod
    def from_record(record: RecordDict) -> CountRequest:
        """Read a request; raises WireError. Whether its merges make tokens is for the tokenizer to say."""
        flat = read_vector(record, "merges", np.uint32)
        if flat.size % 2 or flat.size > 2 * _MAX_MERGES:
            raise WireError("AGFL-WIRE-023", f"merges: must be at most {_MAX_MERGES} pairs of ids, got {flat.size} ids")
        num_merges = flat.size // 2
        most = min(num_merges, MAX_MERGES_PER_ROUND)
        return CountRequest(
            run_id=read_scalar(record, "run_id", str),
            round=read_bounded(record, "round", 1, 2**31),
            exchange=read_bounded(record, "exchange", 0, 2**31),
            plan_hash=read_scalar(record, "plan_hash", str),
            client_plan=read_scalar(record, "client_plan", str),
            merges=tuple(zip(flat[::2].tolist(), flat[1::2].tolist(), strict=True)),
            num_new=read_bounded(record, "num_new", min(1, most), most),
            max_cohort=read_bounded(record, "max_cohort", 1, 2**20),
        )


@dataclass(frozen=True)
class CountCodec:
    """Client half: counts to lanes. Server half: summed lanes to summed counts, exact. Lane 0 counts the client."""

    num_merges: int
    num_new: int
    max_cohort: int

    @staticmethod
    def of(request: CountRequest) -> CountCodec:
        """Return the codec of a request."""
        return CountCodec(len(request.merges), request.num_new, request.max_cohort)

    @property
    def num_lanes(self) -> int:
        """Length of the vector that is summed."""
        known, new = self._known, self.num_new
        return 1 + (new * (2 * known - new) if new else known * known)

    def encode(self, counts: Mapping[Pair, int]) -> Lanes:
        """Return the lanes (num_lanes,) of one client.

        Raises:
            WireError: a count is so large that a sum over the cohort could overflow.
        """
        lanes = np.zeros(self.num_lanes, np.uint64)
        lanes[0] = 1
        pairs = np.array(list(counts), np.int64).reshape(-1, 2)
        lanes[1 + self._cells(pairs[:, 0], pairs[:, 1])] = list(counts.values())
        self.check(lanes)
        return lanes

    def check(self, lanes: Lanes) -> None:
        """Check the lanes that one client adds to the sum.

        Raises:
            WireError: its own count is not 1, or one of a pair could make the sum overflow.
        """
        if lanes[0] != 1:
            raise WireError("AGFL-WIRE-024", f"count: must be 1, got {lanes[0]}")
        if lanes.max() >= self._bound:
            raise WireError("AGFL-WIRE-025", f"lanes: every count must be below {self._bound}, got {lanes.max()}")

    def decode(self, total: Lanes) -> dict[Pair, int]:
        """Return the pairs that occur, with how often they do over the cohort."""
        cells = np.flatnonzero(total[1:])
        left, right = self._pairs(cells)
        return dict(zip(zip(left.tolist(), right.tolist(), strict=True), total[1:][cells].tolist(), strict=True))

    def decode_checked(self, total: Lanes) -> dict[Pair, int]:
        """As `decode`; raises ImplausibleSum where a count is above what the clients of the sum can have together."""
        most = int(total[0]) * (self._bound - 1)
        if int(total.max()) > most:
            raise ImplausibleSum(
                "AGFL-ROUND-005", f"pairs: the sum of a count must be at most {most}, got {total.max()}"
            )
        return self.decode(total)

    @property
    def _bound(self) -> int:
        """One client's count stays below this, so that the sum over the cohort stays below 2^63."""
        return 2**63 // self.max_cohort

    @property
    def _known(self) -> int:
        return NUM_BYTES + self.num_merges

    @property
    def _first_new(self) -> int:
        return FIRST_MERGE + self.num_merges - self.num_new

    def _cells(self, u: NDArray[np.int64], v: NDArray[np.int64]) -> NDArray[np.int64]:
        known, new = self._known, self.num_new
        if not new:
            return known * _place(u) + _place(v)
        on_left = new * known + (u - self._first_new) * (known - new) + _place(v)
        return np.where(v >= self._first_new, (v - self._first_new) * known + _place(u), on_left)

    def _pairs(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        known, new = self._known, self.num_new
        if not new:
            return _id(cells // known), _id(cells % known)
        on_right = cells < new * known
        rest = cells - new * known
        old = max(known - new, 1)
        u = np.where(on_right, _id(cells % known), self._first_new + rest // old)
        v = np.where(on_right, self._first_new + cells // known, _id(rest % old))
        return u, v


def _place(token_id: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(token_id < NUM_BYTES, token_id, token_id - _NUM_MARKS)


def _id(place: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(place < NUM_BYTES, place, place + _NUM_MARKS)


def _flat(merges: tuple[Pair, ...]) -> NDArray[np.uint32]:
    return np.array(merges, np.uint32).reshape(-1)
