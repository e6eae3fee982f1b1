"""How a request's client plan may differ from the approved one: it may ask fewer times. All else is pinned.

Each pinned field could part owners while every one of them takes part: by who is clipped, what is counted, which
examples are looked at. What changes no vector that an owner sends is the server's own, and is in no client plan.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from agfl_models.errors import AgflError

# How often something is asked: fewer times than planned tell less.
AT_MOST = frozenset({"num_rounds", "aggregation.max_attempts"})
AT_LEAST = frozenset({"evaluation.every"})
MAX_LINES = 100
_NOTHING = object()


class PlanViolation(AgflError):
    """A request is not within the plan that this owner approved."""

    area = "PLAN"


def canonical(value: object) -> str:
    """Return JSON with sorted keys and no spaces; raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_fields(planned: Any, asked: Any, path: str = "") -> None:
    """Check that what is asked for has each pinned field as planned, and none above a ceiling.

    Raises:
        PlanViolation: names the first field that is not within the plan.
    """
    for field, before, now in _differing(planned, asked, path):
        if field in AT_MOST and _is_count(now) and now <= before:
            continue
        if field in AT_LEAST and _is_count(now) and now >= before:
            continue
        rule = "must be at most" if field in AT_MOST else "must be at least" if field in AT_LEAST else "must be"
        line = f"{field}: {rule} {_shown(before)} as in the approved plan, got {_shown(now)}"
        raise PlanViolation("AGFL-PLAN-021", _printable(line))


def changes(before: Any, now: Any) -> list[str]:
    """Return a line for each field that differs, at most MAX_LINES and one that says so."""
    differing = _differing(before, now, "")
    lines = [_printable(f"{field}: {_shown(old)} before, {_shown(new)} now") for field, old, new in differing]
    if len(lines) > MAX_LINES:
        return [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more"]
    return lines


def members_changed(before: Collection[str], now: Collection[str]) -> list[str]:
    """Return the lines that say who joined and who left."""
    changed = (("joined", sorted(set(now) - set(before))), ("left", sorted(set(before) - set(now))))
    return [f"members: {', '.join(names)} {verb}" for verb, names in changed if names]


def _differing(before: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, value before, value now) of what differs, down to the smallest part that both have."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differing(before.get(key, _NOTHING), now.get(key, _NOTHING), f"{path}.{key}" if path else key)
    elif _is_list(before) and _is_list(now) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differing(old, new, f"{path}.{i}")
    elif before is _NOTHING or now is _NOTHING or canonical(before) != canonical(now):  # 1, 1.0 and true are three
        yield path, before, now


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _printable(line: str) -> str:
    """Return the line with whatever could steer a terminal written out."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def _shown(value: object) -> str:
    if value is _NOTHING:
        return "nothing"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} items"
    if isinstance(value, Mapping):
        return f"{value['type']}" if isinstance(value.get("type"), str) else f"{len(value)} fields"
    return reprlib.repr(value)
