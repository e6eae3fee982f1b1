"""The devices of a simulation's owners: drawn from the run's seed, or read from a trace."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from agfl_models.bounded import shown
from agfl_models.errors import ConfigError
from agfl_protocol.config.devices_config import Availability, DevicesConfig, Spread
from agfl_protocol.randomness import generator

_COLUMNS = ("owner", "seconds_per_step", "upload_mbit_s", "download_mbit_s", "away")
_MBIT = 1e6 / 8  # bytes
_ALWAYS = math.inf


class Absences:
    """When an owner is away: spans [from, to) in seconds since the run began, one after the other."""

    def __init__(self, spans: Iterator[tuple[float, float]]) -> None:
        self._spans = spans
        self._turns: list[float] = []  # it goes, it comes, it goes, ...

    def back_at(self, moment: float) -> float:
        """Return the moment itself if the owner is there, else when it comes back."""
        turn = self._turn(moment)
        return self._turns[turn] if turn % 2 else moment

    def next_turn(self, moment: float) -> float:
        """Return when it comes or goes next; infinity for never."""
        turn = self._turn(moment)
        return self._turns[turn] if turn < len(self._turns) else _ALWAYS

    def _turn(self, moment: float) -> int:
        """Return how many turns are past; one more is known, if there is one."""
        while not self._turns or self._turns[-1] <= moment:
            span = next(self._spans, None)
            if span is None:
                break
            self._turns += span
        return bisect_right(self._turns, moment)


@dataclass(frozen=True)
class Device:
    """What an owner's device and line can do. upload, download: bytes a second; latency_s: of one way."""

    owner: str
    seconds_per_step: float
    upload: float
    download: float
    latency_s: float
    absences: Absences


def devices_of(config: DevicesConfig, seed: int, names: Sequence[str]) -> dict[str, Device]:
    """Return the device of each owner; raises ConfigError for a trace that cannot be read or lacks an owner."""
    if config.trace is not None:
        return _traced(config.trace, config.latency_s, names)
    return {name: _drawn(config, seed, name) for name in names}


def _drawn(config: DevicesConfig, seed: int, name: str) -> Device:
    rng = generator(seed, name, 0, "device")
    assert config.seconds_per_step is not None
    spreads = (config.seconds_per_step, config.upload_mbit_s, config.download_mbit_s)
    step_s, up, down = (_draw(spread, rng) for spread in spreads)
    away = iter(()) if config.availability is None else _spans(config.availability, rng)
    return Device(name, step_s, up * _MBIT, down * _MBIT, config.latency_s, Absences(away))


def _draw(spread: Spread, rng: np.random.Generator) -> float:
    return spread.median * math.exp(spread.sigma * rng.standard_normal())


def _spans(availability: Availability, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Yield absences without end. The first moment is one like any other, so an owner may be away then."""
    there_s = availability.away_s * availability.share / (1 - availability.share)
    at = 0.0 if rng.random() >= availability.share else rng.exponential(there_s)
    while True:
        back = at + rng.exponential(availability.away_s)
        yield at, back
        at = back + rng.exponential(there_s)


def _traced(path: Path, latency_s: float, names: Sequence[str]) -> dict[str, Device]:
    field = f"data.devices.trace: {path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigError("AGFL-CONFIG-264", f"{field}: must be a CSV file, is not: {error}") from None
    if not rows or sorted(map(str, rows[0])) != sorted(_COLUMNS):
        got = ", ".join(map(str, rows[0])) if rows else "no row"
        raise ConfigError("AGFL-CONFIG-265", f"{field}: must have the columns {', '.join(_COLUMNS)}, got {shown(got)}")
    for row in rows:
        if None in row or None in row.values():  # a comma too many in `away`, or a line that was cut off
            rule = f"must have {len(_COLUMNS)} fields in each line"
            raise ConfigError("AGFL-CONFIG-287", f"{field}: owner {row['owner']!r}: {rule}, got others")
    found = {row["owner"]: row for row in rows}
    if len(found) < len(rows):
        twice = next(name for name in found if sum(row["owner"] == name for row in rows) > 1)
        raise ConfigError("AGFL-CONFIG-288", f"{field}: must have one line for each owner, got {twice!r} again")
    if missing := sorted(set(names) - found.keys()):
        rule = f"must have a line for each owner, has none for {len(missing)}, {missing[0]!r} among them"
        raise ConfigError("AGFL-CONFIG-266", f"{field}: {rule}")
    return {name: _device_of(found[name], f"{field}: owner {name!r}", latency_s) for name in names}


def _device_of(row: Mapping[str, str], field: str, latency_s: float) -> Device:
    step_s, up, down = (_number(row[column], f"{field}: {column}") for column in _COLUMNS[1:4])
    spans = [part.partition("-") for part in row["away"].split(";") if part.strip()]
    away = [(_number(start, f"{field}: away"), _number(end, f"{field}: away")) for start, _, end in spans]
    turns = [moment for span in away for moment in span]
    if any(later <= earlier for earlier, later in pairwise(turns)):
        rule = "must be spans one after the other, as in 60-90;300-900"
        raise ConfigError("AGFL-CONFIG-267", f"{field}: away: {rule}, got {shown(row['away'])}")
    return Device(row["owner"], step_s, up * _MBIT, down * _MBIT, latency_s, Absences(iter(away)))


def _number(text: str, field: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1e9 or (found < 1e-9 and not field.endswith("away")):
        raise ConfigError("AGFL-CONFIG-268", f"{field}: must be a number from 1e-9 to 1e9, got {shown(text)}")
    return found
