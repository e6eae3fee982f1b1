"""Where data from outside becomes typed: pydantic checks it, and a failure becomes one line for a person."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from agfl_models.bounded import MAX_DEPTH, MAX_SHOWN, read_at_most, shown
from agfl_models.errors import BrokenRule, ConfigError

MAX_YAML_BYTES = 4 << 20
_MAX_NODES = 1 << 18  # the most merges that a tokenizer can have take 200,000
_MAX_NUMBER = 100  # characters


class Config(BaseModel):
    """Base of all configuration classes: immutable, strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_key(cls, data: Any) -> Any:
        """Refuse an unknown key with the nearest known one; pydantic's own message names none."""
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    line = f"unknown key {shown(key)}{nearest(str(key), list(cls.model_fields))}"
                    raise BrokenRule("AGFL-CONFIG-001", line)
        return data

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of pydantic, which would keep what was worked out of the old values and cached."""
        copied = super().model_copy(update=update, deep=deep)
        for name in vars(copied).keys() - type(self).model_fields.keys():
            del vars(copied)[name]
        return copied


ConfigT = TypeVar("ConfigT", bound=Config)


class _Loader(yaml.SafeLoader):
    """Refuses what `yaml.safe_load` passes over: a key that stands twice, of which the first would be lost, and bombs.

    A few aliases of aliases stand for gigabytes as soon as somebody prints them, and nobody needs one here.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise ComposerError(None, None, "anchors and aliases (& and *) are not allowed", event.start_mark)
        self._num_nodes += 1
        if self._num_nodes > _MAX_NODES:
            raise ComposerError(None, None, f"at most {_MAX_NODES} values are allowed", event.start_mark)
        if self._depth == MAX_DEPTH:
            raise ComposerError(None, None, f"must nest at most {MAX_DEPTH} deep", event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        # Reading a number takes quadratic time.
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(value) > _MAX_NUMBER:
            raise ConstructorError(None, None, f"a number has at most {_MAX_NUMBER} characters", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if isinstance(value, yaml.ScalarNode) and value.tag.endswith(":null") and not value.value:
                    # What a template's unset variable leaves, and the default of a key can be something else.
                    rule = f"{shown(key.value)} must have a value (null for none), got none"
                    raise ConstructorError(None, None, rule, key.start_mark)
                if (key.tag, key.value) in seen:
                    raise ConstructorError(
                        None, None, f"{shown(key.value)} stands twice in one mapping", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Return the plain data of a YAML document; raises yaml.YAMLError, also where a mapping has a key twice.

    Without aliases, and bounded in length, depth and number of values, since much of it comes from others.
    """
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"must have at most {MAX_YAML_BYTES} characters, got {len(text)}")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (ValueError, IndexError, AttributeError, RecursionError) as error:
        # What PyYAML lets through: a 13th month, an empty `!!int`, thousands of brackets.
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__}: {str(error)[:200]})") from None


def read_yaml(path: Path, *, may_be_empty: bool = False, max_bytes: int = MAX_YAML_BYTES) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; where it `may_be_empty`, nothing is one without keys.

    Raises:
        ConfigError: the file is missing, not YAML, not a mapping, or of more than `max_bytes` bytes.
    """
    try:
        text = read_at_most(path, max_bytes)
        if text is None:
            raise ConfigError("AGFL-CONFIG-002", f"{path}: must have at most {max_bytes} bytes, has more")
        content = load_yaml(text.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError("AGFL-CONFIG-003", f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("AGFL-CONFIG-004", f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError("AGFL-CONFIG-005", f"{path}: malformed YAML: {' '.join(str(error).split())}") from None
    if content is None and may_be_empty:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            "AGFL-CONFIG-006", f"{path}: must hold a mapping of keys to values, not {type(content).__name__}"
        )
    return content


class _Dumper(yaml.SafeDumper):
    """Writes a list of lists, such as thousands of merges, on few lines."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, all(isinstance(item, list) for item in sequence) or flow_style)


def dump_yaml(content: dict[str, Any], *, is_compact: bool = False) -> str:
    """Return a mapping as `read_yaml` reads it; compact, what holds no mapping stands on one line."""
    flow = None if is_compact else False
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, default_flow_style=flow)


def validate(schema: type[ConfigT], data: object, source: str) -> ConfigT:
    """Check `data` against `schema`; `source` (a file or "command line") starts the error line.

    Raises:
        ConfigError: names the first offending field, the rule and the value; for an unknown key, the nearest known one.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "union_tag_not_found":
            problem["ctx"]["expected_tags"] = _tags(schema, data, problem)
        raise broken(problem, f"{source}: {problem_line(problem, data)}") from None


def broken(problem: Mapping[str, Any], line: str) -> ConfigError:
    """Return the error of one of pydantic's: a rule of ours has its own code, one of pydantic's that of its kind."""
    kind = problem["type"]
    rule = problem.get("ctx", {}).get("error")
    if isinstance(rule, BrokenRule):
        return ConfigError.of(rule, line)
    if kind == "value_error":
        return ConfigError("AGFL-CONFIG-007", line)
    if kind == "missing":
        return ConfigError("AGFL-CONFIG-008", line)
    if kind.startswith("union_tag") or kind in ("literal_error", "enum"):
        return ConfigError("AGFL-CONFIG-009", line)
    if kind.endswith(("_type", "_parsing", "_from_float")):
        return ConfigError("AGFL-CONFIG-010", line)
    return ConfigError("AGFL-CONFIG-011", line)  # a bound of a number, a length or a pattern


def _tags(schema: type[Config], data: object, missing: Mapping[str, Any]) -> str:
    """Return what a missing tag may be: pydantic tells it only of a wrong one."""
    key = missing["ctx"]["discriminator"].strip("'")
    try:
        schema.model_validate(_tagged(data, list(_keys(missing["loc"], data)), {key: ""}))
    except ValidationError as error:
        here = (problem for problem in error.errors() if problem["loc"] == missing["loc"])
        return str(next((problem["ctx"]["expected_tags"] for problem in here if "tag" in problem.get("ctx", {})), ""))
    return ""


def _tagged(data: Any, keys: Sequence[Any], tag: Mapping[str, str]) -> Any:
    """Return a copy of plain data in which the mapping under the keys has the tag."""
    if not keys:
        return {**data, **tag}
    changed: Any = dict(data) if isinstance(data, dict) else list(data)
    changed[keys[0]] = _tagged(data[keys[0]], keys[1:], tag)
    return changed


def nearest(name: str, known: list[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to `name`, or the list of known names."""
    close = difflib.get_close_matches(name[:MAX_SHOWN], known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known)) or 'none'})"


def first_problem(error: ValidationError, data: object) -> str:
    """Return the first thing that is wrong with `data`: field, rule and value, in one line."""
    return problem_line(error.errors()[0], data)


def problem_line(problem: Mapping[str, Any], data: object) -> str:
    """Return one of pydantic's errors in `data` as a line."""
    if problem["type"] == "missing":
        *parents, name = problem["loc"]
        return ".".join([*_path(parents, data), str(name)[:MAX_SHOWN]]) + ": required but missing"
    path = ".".join(_path(problem["loc"], data))
    field = f"{path}: " if path else ""
    if problem["type"] == "union_tag_not_found" and problem["ctx"].get("expected_tags"):
        key, tags = (problem["ctx"][name].replace("'", "") for name in ("discriminator", "expected_tags"))
        return f"{path}.{key}: required, one of {tags}"
    if problem["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        tag = problem["ctx"]["tag"]
        return f"{field}unknown {problem['ctx']['discriminator']} {shown(tag)}{nearest(tag, tags)}"
    is_mapping_rule = problem["type"] in ("dict_type", "model_type", "model_attributes_type")
    rule = "must be a mapping" if is_mapping_rule else problem["msg"].removeprefix("Value error, ")
    if rule.startswith("unknown key") or (
        problem["type"] == "value_error" and ", got " in rule
    ):  # a rule of ours that names the value itself
        return f"{field}{rule}"
    return f"{field}{rule}, got {shown(problem['input'])}"


def _path(location: Iterable[int | str], data: object) -> Iterator[str]:
    """Yield the keys that a person wrote, as text."""
    return (str(key)[:MAX_SHOWN] for key in _keys(location, data))


def _keys(location: Iterable[int | str], data: object) -> Iterator[int | str]:
    """Yield the keys that a person wrote: pydantic puts a union's tag among them, which leads nowhere in `data`."""
    for part in location:
        if isinstance(data, dict):
            if part not in data:
                continue
            data = data[part]
        elif isinstance(data, list | tuple) and isinstance(part, int):
            data = data[part]
        else:
            continue
        yield part
