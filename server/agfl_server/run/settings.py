"""What `--set` changed at a run's start: kept in its folder, so that `--resume` goes on with the same run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import not_written, write_atomically

SETTINGS_FILE = "settings.json"


def merged(kept: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the settings (KEY=VALUE) of a run that goes on: those kept, then the new ones, the last of each key."""
    both = [*kept, *new]
    keys = [setting.partition("=")[0] for setting in both]
    return [setting for i, setting in enumerate(both) if keys[i] not in keys[i + 1 :]]


def read_settings(folder: Path) -> list[str]:
    """Return what was set when the run in a folder was started last; nothing where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / SETTINGS_FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("set"), list):
        raise CheckpointError(
            "AGFL-CHECKPOINT-019",
            f"{path}: must hold what was set at the start; it is damaged, so remove it and --set anew",
        )
    return [str(setting) for setting in found["set"]]


def write_settings(folder: Path, settings: Sequence[str]) -> None:
    """Keep what was set; raises CheckpointError if that cannot be written."""
    path = folder / SETTINGS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps({"set": list(settings)}) + "\n").encode())
    except OSError as error:
        raise not_written(path, error) from None
