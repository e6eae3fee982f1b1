"""Owners whose rows are in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from agfl_models.errors import DataError
from agfl_models.examples import InvalidRow, Row, valid_rows
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.identity.identity import NAME_RULE, name_hint
from agfl_sim.partition import Owners, to_write

OwnersData: TypeAlias = Mapping[str, Sequence[str | Mapping[str, Any]]]


def dealt(config: RunConfig, owners: OwnersData, folder: Path) -> Owners:
    """Return the owners' rows as files in `folder` that are still to be written.

    Raises:
        DataError: names the owner, the row, the field, the rule and the value.
    """
    if not owners:
        raise DataError("AGFL-DATA-075", "owners: must hold one owner or more, got none")
    for name in owners:
        if re.fullmatch(NAME_RULE, name) is None:
            raise DataError("AGFL-DATA-076", f"owners: a name must match {NAME_RULE}, got {name!r}{name_hint(name)}")
    return to_write({name: checked_rows(config.task.row, name, rows) for name, rows in owners.items()}, folder)


def checked_rows(kind: type[Row], name: str, rows: Sequence[str | Mapping[str, Any]]) -> list[Row]:
    """Return an owner's rows; raises DataError as `dealt`."""
    if isinstance(rows, str) or len(rows) == 0:  # an array has no truth value
        got = "none" if len(rows) == 0 else "one text, which is no list of rows"
        raise DataError("AGFL-DATA-077", f"owners: {name}: must hold one row or more, got {got}")
    # A text stands for a row whose only column it is.
    contents = [{"text": row} if isinstance(row, str) else row for row in rows]
    try:
        return valid_rows(kind, contents)
    except InvalidRow as error:
        raise DataError("AGFL-DATA-078", f"owners: {name}: row {error.number + 1}: {error}") from None
