"""A task or a model that a researcher passes as an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from agfl_models.errors import ConfigError
from agfl_models.registry import Registry
from agfl_models.validation import Config


def stated(key: str, part: Config | Mapping[str, Any] | None, registry: Registry[Any]) -> list[str]:
    """Return the setting KEY=VALUE that a part of a run is, so that the run's folder says it; none for None.

    Its class is registered if it is not, since whoever takes part finds it by its name.

    Raises:
        ConfigError: it is no part of a run, or no plain data, or its class does not fit or has the name of another one.
    """
    if part is None:
        return []
    if isinstance(part, Config):
        registry.admit(type(part))
        content: Mapping[str, Any] = part.model_dump(mode="json")
    elif isinstance(part, Mapping):
        content = part
    else:
        got = type(part).__name__
        raise ConfigError("AGFL-CONFIG-235", f"{key}: must be a configuration or a mapping, got {got}")
    try:
        return [f"{key}={json.dumps(dict(content), default=_plain)}"]
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError("AGFL-CONFIG-275", f"{key}: must be plain data, which a file can hold: {error}") from None


def _plain(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"got a {type(value).__name__}")
