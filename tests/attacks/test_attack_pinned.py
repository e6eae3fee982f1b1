"""Every field that travels to a client: the approved plan pins it, or there is a reason why it parts nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hostile_server import HostileServer
from tests.repeats_world import BPE, EXACT, model_of

from agfl_models.errors import AgflError
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.plans.plan_fields import PlanViolation, canonical, check_fields

Serve = Callable[..., HostileServer]

# What a plan leaves open, and why that parts nobody.
OPEN = {
    "num_rounds": "a ceiling: fewer sums tell less",
    "aggregation.max_attempts": "a ceiling",
    "evaluation.every": "a floor",
}
LOCAL = {"model.folder", "tokenizer.text"}  # never sent


def test_the_plan_pins_every_field_of_the_schema_but_those_with_a_reason() -> None:
    schema = ClientPlan.model_json_schema()
    paths = sorted(set(_paths(schema, schema["$defs"], "", ())))
    assert len(paths) > 100
    assert {path for path in paths if not _is_pinned(path)} == set(OPEN)


def _is_pinned(path: str) -> bool:
    for before, now in ((2, 1), (1, 2), ("a", "b"), (None, 1)):
        try:
            check_fields(_nested(path, before), _nested(path, now))
        except PlanViolation:
            continue
        return False
    return True


def _nested(path: str, value: object) -> object:
    key, _, rest = path.partition(".")
    inner = _nested(rest, value) if rest else value
    return [inner] if key == "0" else {key: inner}


def _paths(node: Mapping[str, Any], defs: Mapping[str, Any], path: str, seen: tuple[str, ...]) -> Iterator[str]:
    """Yield the path of every field; an item of a list is 0. A definition is not entered within itself."""
    if path in LOCAL:
        return
    name = node.get("$ref", "").rpartition("/")[2]
    if name in seen:
        return
    if name:
        yield from _paths(defs[name], defs, path, (*seen, name))
    for kind in ("anyOf", "oneOf", "allOf"):
        for one in node.get(kind, ()):
            yield from _paths(one, defs, path, seen)
    for key, inner in node.get("properties", {}).items():
        below = f"{path}.{key}" if path else key
        if below not in LOCAL:
            yield below
            yield from _paths(inner, defs, below, seen)
    if isinstance(node.get("items"), dict):
        yield from _paths(node["items"], defs, f"{path}.0", seen)


RUNS = {
    "sampled": (),
    "exact": EXACT,
    "scaffold": ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"),
    "auto": ("aggregation.server_optimizer={type: auto}",),
    "q-ffl": ("aggregation.weighting=loss",),
    "alignment": ("aggregation.weighting=alignment",),
    "elastic": ("elastic={widths: [0.5, 1.0], growth: {}}",),
    "bpe": BPE,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_node_refuses_another_value_of_every_field(name: str, serve: Serve) -> None:
    server = serve(*RUNS[name])
    node, content = server.nodes[server.names[0]], json.loads(server.config.client_plan.to_json())
    for path, other in _changed(content):
        asked = server.request(model_of(server), client_plan=canonical(other))
        try:
            node.handle_round(replace(asked, round=1))
        except AgflError:
            continue
        assert _general(path) in OPEN, path


def _general(path: str) -> str:
    return ".".join("0" if part.isdecimal() else part for part in path.split("."))


def _changed(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each leaf's path, and the whole content with another value there."""
    for path, value in _leaves(content, ""):
        changed = json.loads(json.dumps(content))
        place: Any = changed
        *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
        for part in parents:
            place = place[part]
        place[last] = _other(value)
        yield path, changed


def _leaves(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if items is None or not content:
        yield path, content
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9375 + 0.01
    if isinstance(value, list):
        return [{"type": "square_norm"}]
    return {"secure": "plain", "float32": "bfloat16", "mean": "normalized", "tokens": "uniform"}.get(value, 1)
