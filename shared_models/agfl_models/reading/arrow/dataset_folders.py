"""Folders of tables as others lay them out: `datasets` (`save_to_disk`), and shards as a hub has them.

A folder of several splits is refused: who trains on all of them trains on the test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agfl_models.errors import DataError

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.parquet|\.arrow)", re.IGNORECASE)
_MAX_BYTES, _SHOWN = 1 << 22, 8


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote one split, or several, into this folder."""
    return (folder / _SPLITS).is_file() or ((folder / _STATE).is_file() and (folder / _INFO).is_file())


def dataset_files(folder: Path) -> list[Path]:
    """Return the files of the one split in a folder of `datasets`, in their order.

    Raises:
        DataError: it has several splits, or says otherwise what it has than `save_to_disk` does.
    """
    if (folder / _SPLITS).is_file():
        splits = _names(folder / _SPLITS, "splits")
        if len(splits) != 1:
            raise DataError(
                "AGFL-DATA-009",
                f"data: {folder}: must be one split, got {_listed(splits)}; give the folder of one of them",
            )
        folder = folder / splits[0]
    path = folder / _STATE
    if _content(path).get("_indices_data_files"):
        raise DataError(
            "AGFL-DATA-010", f"data: {path}: must have no _indices_data_files; save it once more with save_to_disk"
        )
    return [folder / name for name in _names(path, "_data_files", "filename")]


def check_shards(files: Iterable[Path]) -> None:
    """Raise DataError if shards in one folder are of several splits, or if one of them is missing."""
    folders: dict[Path, dict[str, dict[int, int]]] = {}
    for path in files:
        if match := _SHARD.fullmatch(path.name):
            splits = folders.setdefault(path.parent, {})
            splits.setdefault(match["split"], {})[int(match["number"])] = int(match["count"])
    for folder, splits in folders.items():
        if len(splits) > 1:
            rule = "must hold the shards of one split"
            raise DataError(
                "AGFL-DATA-011",
                f"data: {folder}: {rule}, got {_listed(sorted(splits))}; give a folder with one of them",
            )
        for split, shards in splits.items():
            count = max(shards.values())
            missing = next((number for number in range(count) if number not in shards), None)
            if missing is not None:
                raise DataError(
                    "AGFL-DATA-012",
                    f"data: {folder}: must hold all {count} shards of {split!r}, lacks number {missing:05}",
                )


def _listed(splits: list[str]) -> str:
    more = len(splits) - _SHOWN
    return (", ".join(map(repr, splits[:_SHOWN])) or "none") + (f" and {more} more" if more > 0 else "")


def _names(path: Path, key: str, inner: str | None = None) -> list[str]:
    """Return the names in a list of that file; none may lead out of its folder."""
    listed = _content(path).get(key)
    if not isinstance(listed, list):
        raise DataError("AGFL-DATA-013", f"data: {path}: {key}: must be a list, got {str(listed)[:40]!r}")
    names = []
    for item in listed:
        name = item.get(inner) if inner and isinstance(item, dict) else item
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise DataError(
                "AGFL-DATA-014", f"data: {path}: {key}: must be names in its folder, got {str(name)[:40]!r}"
            )
        names.append(name)
    return names


def _content(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "AGFL-DATA-015", f"data: {path}: must be what save_to_disk writes: {str(error)[:200]}"
        ) from None
    if not isinstance(content, dict):
        raise DataError("AGFL-DATA-016", f"data: {path}: must be what save_to_disk writes, got {str(content)[:40]!r}")
    return content
