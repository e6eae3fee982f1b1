"""Parts that are found by name: a configuration says which, and an installed plug-in may add to them."""

from __future__ import annotations

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


class Registry(Generic[BaseT]):
    """The kinds of one part. `Annotated[Base, registry]` is the type of a field that holds any of them.

    base: what they all derive from; key: the field that names the kind, in every configuration of the part;
    beyond: a registry whose kinds are among these.
    """

    def __init__(self, base: type[BaseT], key: str = "type", beyond: Registry[Any] | None = None) -> None:
        self._base, self._key, self._beyond = base, key, beyond
        self._kinds: dict[str, TypeAdapter[Any]] = {}
        self._depth = 0  # of the description that is being written

    def register(self, kind: type[KindT]) -> type[KindT]:
        """Add a configuration class under the names that its key may hold; return it, so that this decorates it.

        Raises:
            ConfigError: the class does not fit, or another one has its name.
        """
        is_kind = issubclass(kind, self._base)
        if not is_kind:
            parent = kind.__mro__[1].__name__
            raise ConfigError(
                "AGFL-CONFIG-130", f"{kind.__name__}: must derive from {self._base.__name__}, got one of {parent}"
            )
        names = get_args(kind.model_fields[self._key].annotation)
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                "AGFL-CONFIG-131", f"{kind.__name__}.{self._key}: must be a Literal of names, got {names}"
            )
        for name in names:
            self.register_union(name, kind)
        return kind

    def register_union(self, name: str, kinds: Any) -> None:
        """Add configuration classes that have one name, as a union that tells them apart; raises as `register`."""
        if name in self.names:
            raise ConfigError("AGFL-CONFIG-132", f"{self._key}: must be a new name, got {name!r}, which is registered")
        self._kinds[name] = TypeAdapter(kinds)

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
            return content
        if not isinstance(content, dict):
            raise PydanticKnownError("model_type", {"class_name": self._base.__name__})
        if self._key not in content:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": repr(self._key)})
        name = content[self._key]
        if not isinstance(name, str) or name not in self.names:
            raise self._unknown(name)
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

    def _adapter(self, name: str) -> TypeAdapter[Any]:
        if name in self._kinds:
            return self._kinds[name]
        assert self._beyond is not None
        return self._beyond._adapter(name)

    def _unknown(self, name: object) -> PydanticKnownError:
        known = ", ".join(map(repr, self.names))
        context = {"discriminator": repr(self._key), "tag": str(name), "expected_tags": known}
        return PydanticKnownError("union_tag_invalid", context)
