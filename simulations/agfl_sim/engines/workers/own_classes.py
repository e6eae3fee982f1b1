"""Which classes of the researcher's own a run is made of, and whether another process can find them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_server.search.slate import make_slate
from agfl_sim.engines.workers.messages import ClassPath

_OURS = ("agfl", "agfl_models", "agfl_protocol", "agfl_client", "agfl_server", "agfl_sim")


def own_classes(config: RunConfig, engine: str) -> tuple[ClassPath, ...]:
    """Return (module, name) of each class, none of this package, in what travels to owners in a run on an engine.

    Raises:
        ConfigError: one is of a notebook, a script or a function, where no other process finds it.
    """
    found = {}
    searched = () if config.search is None else [one.config.model for one in make_slate(config).candidates]
    for kind in _classes([config.client_plan, *searched]):
        module, name = kind.__module__, kind.__qualname__
        if module.split(".")[0] in _OURS or (module, name) in found:
            continue
        place: Any = sys.modules.get(module) if module != "__main__" else None
        for part in name.split("."):
            place = getattr(place, part, None)
        if place is not kind:
            raise ConfigError(
                "AGFL-CONFIG-283",
                f"--engine {engine}: {name} must be in a module that a new process can import, got {module}",
            )
        found[module, name] = kind
    return tuple(found)


def _classes(value: Any) -> Iterator[type]:
    """Yield the class of each part of a configuration."""
    if isinstance(value, BaseModel):
        yield type(value)
        for name in type(value).model_fields:
            yield from _classes(getattr(value, name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _classes(one)
    elif isinstance(value, list | tuple | frozenset):
        for one in value:
            yield from _classes(one)
