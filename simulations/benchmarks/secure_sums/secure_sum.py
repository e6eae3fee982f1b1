"""CPU time of a secure sum: ours, beside the physical limit and Flower's SecAgg+, for n clients and d parameters.

One client's part and the server's unmasking run for real, on one thread, with real messages of all n clients; the
others' vectors have only their first lanes, where the opened sum is checked. "Lost" clients drop out after trip 2.
Times are in milliseconds, each the least of several, since other work on the machine only adds to it; training and
putting messages into Flower's records are left out. "Codec" is check, clip, weigh, quantize and pack; "context" hashes
what was broadcast; "keys" is trips 1, 2, 4 and 5; "mask" is trip 3; "rebuild" is the server's way from the replies of
trip 5 to all seeds, "unmask" takes the masks away.

The limit comes from rates measured beside each row: for every mask its AES-256 key stream and its addition in the
cache, every X25519 and Ed25519 operation that the protocol needs, and for the client the SHA-256 of the model, to
which its masks are bound. It has no codec, memory or Python. The last column is the ratio without SHA-256 in the limit.
Flower's times are those of its own functions (flwr.common.secure_aggregation), each timed by itself on the same n, d
and threshold and MULTIPLIED by how often its client and its workflow call it; no run of theirs was made.

    python simulations/benchmarks/secure_sums/secure_sum.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TypeVar

from cpu_time import Rates
from flower_secagg import FlowerKeys, FlowerVectors, flower_client, flower_server
from secure_attempt import Attempt, ClientTimes, ServerTimes, Work

COHORTS, SIZES, DROPOUTS = (10, 50, 100), (100_000, 1_000_000, 10_000_000), (0.0, 0.05, 0.3)
PASSES = 3

# Targets
CLIENT_LIMIT, SMALL_CLIENT_LIMIT, SERVER_LIMIT = 1.5, 2.0, 1.3  # times the limit; small: n = 10
CLIENT_GAIN, SERVER_GAIN = 10.0, 20.0  # times less than Flower
FIXED_UPLOAD = 16_000  # bytes beside 64/F bits an element
DOMINANT_S = 0.01  # masks dominate the server's work where they take longer than this, and four times as long as keys


RecordT = TypeVar("RecordT", Rates, ClientTimes, ServerTimes)


def _least(records: Sequence[RecordT]) -> RecordT:
    """Return the least of each field."""
    return type(records[0])(*map(min, zip(*map(astuple, records), strict=True)))


@dataclass(frozen=True)
class Case:
    """One row: what was measured, its limit and Flower's time."""

    work: Work
    lost: int
    client: ClientTimes
    client_limit: float
    model_hash_limit: float
    client_flower: float
    server: ServerTimes
    server_mask_limit: float
    server_key_limit: float
    server_flower: float

    @staticmethod
    def measure(work: Work, exchange: Attempt, lost: int, passes: int) -> Case:
        """Measure client, rates and server in turn, `passes` times, since others use this machine; take the least."""
        n, num_lanes, survivors = work.n, work.codec.num_lanes, work.n - lost
        opening = exchange.open(exchange.members.names[:survivors])
        found = [
            (ClientTimes.measure(work, opening), Rates.measure(), ServerTimes.measure(opening)) for _ in range(passes)
        ]
        client, rates = _least([client for client, _, _ in found]), _least([rates for _, rates, _ in found])
        server = _least([server for _, _, server in found])
        keys = FlowerKeys.measure(n, exchange.parameters.threshold, survivors)
        vectors = FlowerVectors.measure(work.d)
        model_hash = 4 * work.d * rates.sha256
        return Case(
            work=work,
            lost=lost,
            client=client,
            client_limit=rates.masks(n, num_lanes) + rates.client_keys(n, exchange.quorum) + model_hash,
            model_hash_limit=model_hash,
            client_flower=flower_client(n, keys, vectors),
            server=server,
            server_mask_limit=rates.masks(survivors + lost * survivors, num_lanes),
            server_key_limit=rates.server_keys(survivors, lost),
            server_flower=flower_server(n, lost, keys, vectors),
        )

    @property
    def allowed_upload(self) -> float:
        """Bytes."""
        return 8 * self.work.d / self.work.fields_per_lane + FIXED_UPLOAD

    @property
    def server_limit(self) -> float:
        """Seconds."""
        return self.server_mask_limit + self.server_key_limit

    @property
    def masks_dominate(self) -> bool:
        """Whether the server's limit is one of masks, and long enough to be measured against."""
        return self.server_mask_limit >= max(DOMINANT_S, 4 * self.server_key_limit)


class Verdicts:
    """Which targets were met."""

    def __init__(self) -> None:
        self._rows: dict[str, list[bool]] = {}

    def judge(self, target: str, *, applies: bool, met: bool) -> str:
        """Return what stands beside a number, and count it where the target applies."""
        if not applies:
            return "-"
        self._rows.setdefault(target, []).append(met)
        return "met" if met else "MISSED"

    def lines(self) -> Iterator[str]:
        """Yield one line a target."""
        for target, rows in self._rows.items():
            yield f"{'met' if all(rows) else 'MISSED':<6}  {target}: met in {sum(rows)} of {len(rows)} rows"


def client_rows(cases: Iterable[Case], verdicts: Verdicts) -> Iterator[str]:
    """Yield the table of the client; its last ratio is for the reader, no target stands on it."""
    yield (
        f"{'n':>4} {'d':>9} {'lost':>4} {'F':>2} {'codec':>7} {'context':>8} {'keys':>7} {'mask':>8} {'total':>8} "
        f"{'limit':>8} {'ratio':>6} {'':<6} {'Flower':>9} {'less':>6} {'':<6} {'upload':>9} {'allowed':>9} {'':<6} "
        f"{'no SHA-256':>10}"
    )
    for case in cases:
        work, times = case.work, case.client
        ratio, gain = times.total / case.client_limit, case.client_flower / times.total
        bound, where = (CLIENT_LIMIT, "n >= 50") if work.n >= 50 else (SMALL_CLIENT_LIMIT, "n = 10")
        limit = verdicts.judge(f"client CPU <= {bound:g} x limit ({where})", applies=True, met=ratio <= bound)
        gain_rule = f"client CPU at least {CLIENT_GAIN:g} times less than Flower's (d >= 1M)"
        flower = verdicts.judge(gain_rule, applies=work.d >= 1_000_000, met=gain >= CLIENT_GAIN)
        upload_rule = f"upload <= 64/F bits an element + {FIXED_UPLOAD} bytes"
        upload = verdicts.judge(upload_rule, applies=True, met=times.upload <= case.allowed_upload)
        without = times.total / (case.client_limit - case.model_hash_limit)
        yield (
            f"{work.n:>4} {work.d:>9} {case.lost:>4} {work.fields_per_lane:>2} {_ms(times.codec, 7)} "
            f"{_ms(times.context)} {_ms(times.keys, 7)} {_ms(times.mask)} {_ms(times.total)} {_ms(case.client_limit)} "
            f"{ratio:>6.2f} {limit:<6} {_ms(case.client_flower, 9)} {gain:>6.1f} {flower:<6} {times.upload:>9} "
            f"{case.allowed_upload:>9.0f} {upload:<6} {without:>10.2f}"
        )


def server_rows(cases: Iterable[Case], verdicts: Verdicts) -> Iterator[str]:
    """Yield the table of the server."""
    yield (
        f"{'n':>4} {'d':>9} {'lost':>4} {'rebuild':>8} {'unmask':>9} {'total':>9} {'limit':>9} {'of masks':>9} "
        f"{'ratio':>6} {'':<6} {'Flower':>11} {'less':>7}"
    )
    limit_rule = f"server CPU <= {SERVER_LIMIT:g} x limit where masks dominate (over {DOMINANT_S * 1e3:g} ms, 4 x keys)"
    for case in cases:
        work, times = case.work, case.server
        ratio, gain = times.total / case.server_limit, case.server_flower / times.total
        limit = verdicts.judge(limit_rule, applies=case.masks_dominate, met=ratio <= SERVER_LIMIT)
        less = f"server CPU at least {SERVER_GAIN:g} times less than Flower's (n >= 50)"
        flower = verdicts.judge(less, applies=work.n >= 50, met=gain >= SERVER_GAIN)
        yield (
            f"{work.n:>4} {work.d:>9} {case.lost:>4} {_ms(times.rebuild)} {_ms(times.unmask, 9)} {_ms(times.total, 9)} "
            f"{_ms(case.server_limit, 9)} {_ms(case.server_mask_limit, 9)} {ratio:>6.2f} {limit:<6} "
            f"{_ms(case.server_flower, 11)} {gain:>7.1f} {flower}"
        )


def _ms(seconds: float, width: int = 8) -> str:
    return f"{seconds * 1e3:>{width}.2f}"


def _describe(rates: Rates) -> str:
    return (
        f"AES-256-CTR {1e-9 / rates.stream:.2f} GB/s, uint64 add {1e-9 / rates.add:.1f} GB/s on 256 KiB; X25519 keys "
        f"{rates.keygen * 1e6:.0f} us, exchange {rates.exchange * 1e6:.0f} us; Ed25519 sign {rates.sign * 1e6:.0f} us, "
        f"verify {rates.verify * 1e6:.0f} us; SHA-256 {1e-9 / rates.sha256:.2f} GB/s"
    )


def _load() -> str:
    return "load average " + " ".join(f"{load:.1f}" for load in os.getloadavg())


def measure(cohorts: Sequence[int], sizes: Sequence[int], dropouts: Sequence[float], passes: int) -> Iterator[Case]:
    """Yield all rows, telling on standard error how far it is."""
    for n in cohorts:
        for d in sizes:
            print(f"n = {n}, d = {d}: {_load()}", file=sys.stderr, flush=True)
            work = Work.of(n, d)
            exchange = Attempt.run(work)
            for dropout in dropouts:
                yield Case.measure(work, exchange, int(n * dropout), passes)


def main() -> None:
    """Measure and print both tables and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="n in {10, 50}, d in {100k, 1M}")
    parser.add_argument("--smoke", action="store_true", help="n = 5, d = 10k, once: does it run?")
    arguments = parser.parse_args()
    cohorts: tuple[int, ...] = COHORTS[:2] if arguments.quick else COHORTS
    sizes: tuple[int, ...] = SIZES[:2] if arguments.quick else SIZES
    dropouts: tuple[float, ...] = DROPOUTS
    passes = PASSES
    if arguments.smoke:
        cohorts, sizes, dropouts, passes = (5,), (10_000,), DROPOUTS[-1:], 1
    began = time.monotonic()
    print(f"at the start: {_load()}; {_describe(Rates.measure())}")
    cases = list(measure(cohorts, sizes, dropouts, passes))
    print(f"at the end:   {_load()}; {_describe(Rates.measure())}")
    verdicts = Verdicts()
    for title, rows in (("client", client_rows(cases, verdicts)), ("server", server_rows(cases, verdicts))):
        print(f"\n{title}: CPU milliseconds, one thread; Flower's are its functions' times, multiplied")
        print(*rows, sep="\n")
    print("", *verdicts.lines(), f"took {time.monotonic() - began:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
