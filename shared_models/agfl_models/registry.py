"""Parts that are found by name: a configuration says which, and an installed plug-in may add to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_plain_validator_function

from agfl_models.errors import ConfigError
from agfl_models.validation import Config

BaseT = TypeVar("BaseT", bound=Config)
KindT = TypeVar("KindT", bound=Config)
_MAX_DEPTH = 2  # of a schema that says what may stand in a group, which may hold groups
_origin: ContextVar[str | None] = ContextVar("origin", default=None)
_used: ContextVar[set[str] | None] = ContextVar("used", default=None)


@contextmanager
def registering_for(plugin: str) -> Iterator[None]:
    """Note that what is registered in this block comes from a plug-in."""
    token = _origin.set(plugin)
    try:
        yield
    finally:
        _origin.reset(token)


@contextmanager
def plugins_used() -> Iterator[set[str]]:
    """Yield a set that fills with the plug-ins whose kinds are validated in this block."""
    used: set[str] = set()
    outer = _used.get()
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)
        if outer is not None:
            outer |= used


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
        for name, known in list(self._types.items()):
            if known is not kind and isinstance(known, type) and (known.__module__, known.__qualname__) == place:
                del self._types[name], self._kinds[name]
        self.add(kind)

    def register_union(self, name: str, kinds: Any) -> None:
        """Add configuration classes that have one name, as a union that tells them apart; raises as `register`."""
        origin = _origin.get()
        if origin is not None:
            self._origins.setdefault(name, origin)
        if name in self._types and self._types[name] is kinds:
            return
        if name in self.names:
            raise ConfigError("AGFL-CONFIG-132", f"{self._key}: must be a new name, got {name!r}, which is registered")
        self._types[name], self._kinds[name] = kinds, TypeAdapter(kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all kinds, in the order of their registration."""
        return (*(self._beyond.names if self._beyond is not None else ()), *self._kinds)

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

    def _unknown(self, name: object) -> PydanticKnownError:
        known = ", ".join(map(repr, self.names))
        context = {"discriminator": repr(self._key), "tag": str(name), "expected_tags": known}
        return PydanticKnownError("union_tag_invalid", context)
