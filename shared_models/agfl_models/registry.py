"""Parts that are found by name: a configuration says which, and an installed plug-in may add to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_plain_validator_function

from agfl_models.errors import ConfigError
from agfl_models.validation import Config

BaseT = TypeVar("BaseT", bound=Config)
KindT = TypeVar("KindT", bound=Config)
_SHIPPED = frozenset({"agfl", "agfl_client", "agfl_models", "agfl_protocol", "agfl_server", "agfl_sim"})
_MAX_DEPTH = 2  # of a schema that says what may stand in a group, which may hold groups


@dataclass(frozen=True)
class Loading:
    """A plug-in that is being loaded. kinds: the classes that were registered; undo: what takes that back, in order."""

    plugin: str
    kinds: list[type] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)


_loading: ContextVar[Loading | None] = ContextVar("loading", default=None)
_known: ContextVar[frozenset[str] | None] = ContextVar("known", default=None)
_used: ContextVar[set[str] | None] = ContextVar("used", default=None)


@contextmanager
def loading(plugin: str) -> Iterator[Loading]:
    """Note that what is registered in this block comes from a plug-in; where it fails, nothing of that stays."""
    one = Loading(plugin)
    token = _loading.set(one)
    try:
        yield one
    except BaseException:
        for undo in reversed(one.undo):
            undo()
        raise
    finally:
        _loading.reset(token)


def note_registered(kind: type, undo: Callable[[], object]) -> None:
    """Tell the plug-in that is being loaded, if one is, that a class of it is registered, and what takes that back."""
    one = _loading.get()
    if one is not None:
        one.kinds.append(kind)
        one.undo.append(undo)


@contextmanager
def only_plugins(names: Iterable[str]) -> Iterator[None]:
    """In this block the kinds of all other plug-ins are unknown."""
    token = _known.set(frozenset(names))
    try:
        yield
    finally:
        _known.reset(token)


@contextmanager
def plugins_used() -> Iterator[set[str]]:
    """Yield a set that fills with the plug-ins whose kinds are validated in this block."""
    used: set[str] = set()
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)


class Registry(Generic[BaseT]):
    """The kinds of one part. `Annotated[Base, registry]` is the type of a field that holds any of them.

    base: what they all derive from; key: the field that names the kind, in every configuration of the part;
    beyond: a registry whose kinds are among these.
    """

    def __init__(self, base: type[BaseT], key: str = "type", beyond: Registry[Any] | None = None) -> None:
        self._base, self._key, self._beyond = base, key, beyond
        self._kinds: dict[str, TypeAdapter[Any]] = {}
        self._types: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._depth = 0  # of the description that is being written

    def register(self, kind: type[KindT]) -> type[KindT]:
        """Add a configuration class under the names that its key may hold; return it, so that this decorates it.

        Raises:
            ConfigError: as `add`.
        """
        self.add(kind)
        return kind

    def add(self, kind: type[Config]) -> tuple[str, ...]:
        """Add a configuration class and return its names; the same class once more changes nothing.

        Raises:
            ConfigError: the class does not fit, or another one has its name.
        """
        is_kind = issubclass(kind, self._base)
        if not is_kind:
            parent = kind.__mro__[1].__name__
            raise ConfigError(
                "AGFL-CONFIG-130", f"{kind.__name__}: must derive from {self._base.__name__}, got one of {parent}"
            )
        missing = sorted(getattr(kind, "__abstractmethods__", ()))
        if missing:
            raise ConfigError("AGFL-CONFIG-272", f"{kind.__name__}: must define {', '.join(missing)}")
        names = get_args(kind.model_fields[self._key].annotation)
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                "AGFL-CONFIG-131", f"{kind.__name__}.{self._key}: must be a Literal of names, got {names}"
            )
        for name in names:
            self.register_union(name, kind)
        return names

    def admit(self, kind: type[Config]) -> None:
        """Add a configuration class unless it is there; raises as `add`.

        One that its author defined anew, as a notebook does with each run of a cell, takes the place of the one before.
        """
        place = (kind.__module__, kind.__qualname__)
        names = get_args(kind.model_fields[self._key].annotation) if self._key in kind.model_fields else ()
        if not names or any(_place(self._types.get(name)) != place for name in names):
            self.add(kind)
            return
        for name in names:
            self._types[name], self._kinds[name] = kind, TypeAdapter(kind)

    def register_union(self, name: str, kinds: Any) -> None:
        """Add configuration classes that have one name, as a union that tells them apart; raises as `register`."""
        if name in self._types and self._types[name] is kinds:
            return
        if name in self._all_names:
            raise ConfigError("AGFL-CONFIG-132", f"{self._key}: must be a new name, got {name!r}, which is registered")
        self._types[name], self._kinds[name] = kinds, TypeAdapter(kinds)
        one = _loading.get()
        if one is not None and not _is_shipped(kinds):
            self._origins[name] = one.plugin
            note_registered(kinds, lambda: self._forget(name))

    def _forget(self, name: str) -> None:
        for known in (self._types, self._kinds, self._origins):
            known.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all kinds that are known here, in the order of their registration."""
        known = _known.get()
        own = (name for name in self._kinds if known is None or self._origins.get(name, "") in ("", *known))
        return (*(self._beyond.names if self._beyond is not None else ()), *own)

    @property
    def _all_names(self) -> tuple[str, ...]:
        return (*(self._beyond._all_names if self._beyond is not None else ()), *self._kinds)

    def known(self, name: str) -> str:
        """Return the name of a kind; raises as pydantic does where there is none, for a field that holds a name."""
        if name not in self.names:
            raise self._unknown(name)
        return name

    def validate(self, content: Any) -> BaseT:
        """Return the configuration that plain data describes; raises as pydantic does."""
        if isinstance(content, self._base):
            self._note_use(getattr(content, self._key))
            return content
        if not isinstance(content, dict):
            raise PydanticKnownError("model_type", {"class_name": self._base.__name__})
        if self._key not in content:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": repr(self._key)})
        name = content[self._key]
        if not isinstance(name, str) or name not in self.names:
            raise self._unknown(name)
        self._note_use(name)
        found: BaseT = self._adapter(name).validate_python(content)
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Looked up when it is used: a class of before knows what is registered later.
        return no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if self._depth == _MAX_DEPTH:
            return {"type": "object"}
        self._depth += 1
        try:
            return {"oneOf": [handler(self._adapter(name).core_schema) for name in self.names]}
        finally:
            self._depth -= 1

    def _note_use(self, name: str) -> None:
        used = _used.get()
        if used is not None and name in self._origins:
            used.add(self._origins[name])
        elif self._beyond is not None:
            self._beyond._note_use(name)

    def _adapter(self, name: str) -> TypeAdapter[Any]:
        if name in self._kinds:
            return self._kinds[name]
        assert self._beyond is not None
        return self._beyond._adapter(name)

    @property
    def _plugin_names(self) -> frozenset[str]:
        return frozenset(self._origins) | (self._beyond._plugin_names if self._beyond is not None else frozenset())

    def _unknown(self, name: object) -> PydanticKnownError:
        # A client's answer goes to the server, which is not to learn what else its owner has enabled.
        known = ", ".join(repr(known) for known in self.names if known not in self._plugin_names)
        context = {"discriminator": repr(self._key), "tag": str(name), "expected_tags": known}
        return PydanticKnownError("union_tag_invalid", context)


def _is_shipped(kind: Any) -> bool:
    """Whether a class is of this distribution: a plug-in may be the first to import what registers it."""
    return getattr(kind, "__module__", "").partition(".")[0] in _SHIPPED


def _place(kind: Any) -> tuple[str, str] | None:
    return (kind.__module__, kind.__qualname__) if isinstance(kind, type) else None
