"""Says why a run cannot go on from what lies in its folder: the configuration has changed, or agfl has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agfl_models.bounded import shown
from agfl_models.errors import CheckpointError
from agfl_models.version import VERSION, written_by

_NAMED = 6  # keys in one line
_MAY_CHANGE = "what may change is num_rounds, evaluation, data, baselines, search and tracking"
_MISSING = object()


def refuse_other(
    where: str,
    found_hash: str,
    config_hash: str,
    written: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    version: str | None = VERSION,
) -> None:
    """Raise CheckpointError if what was found belongs to a run with another configuration.

    written, config: what defines the run that was found and the one that is to go on, as `RunConfig.defining`, where
    known. version: of the agfl that wrote what was found; None of one that did not yet say it.
    """
    if found_hash == config_hash:
        return
    changes = list(_changes("", written, config)) if written is not None and config is not None else []
    if not changes and (version != VERSION or written is not None):
        raise CheckpointError(
            "AGFL-CHECKPOINT-014", f"{where}: {written_by(version)}, for which the same configuration means another run"
        )
    by = "" if version == VERSION else f"; it {written_by(version)}"
    if not changes:
        hashes = f"configuration hash {found_hash[:12]}, this configuration has {config_hash[:12]}"
        raise CheckpointError("AGFL-CHECKPOINT-015", f"{where}: belongs to a run with {hashes} ({_MAY_CHANGE}){by}")
    more = f", and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    named = ", ".join(changes[:_NAMED]) + more
    raise CheckpointError(
        "AGFL-CHECKPOINT-016", f"{where}: belongs to a run with another configuration: {named} ({_MAY_CHANGE}){by}"
    )


def _changes(key: str, found: Any, here: Any) -> Iterator[str]:
    """Yield each key that differs, with both values."""
    if isinstance(found, list | tuple) and isinstance(here, list | tuple) and len(found) == len(here):
        found, here = dict(enumerate(found)), dict(enumerate(here))
    if isinstance(found, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*found, *here]):
            inner = f"{key}.{name}" if key else str(name)
            yield from _changes(inner, found.get(name, _MISSING), here.get(name, _MISSING))
    elif found is _MISSING:
        yield f"{key} was unknown, now {shown(here)}"
    elif here is _MISSING:
        yield f"{key} was {shown(found)}, now unknown"
    elif found != here:
        yield f"{key} was {shown(found)}, now {shown(here)}"
