"""What reading a file gives, a part at a time: its records, and what is counted of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Record = tuple[str, Any]  # where in the file it stands, and what should be a mapping of columns


class Wanted(NamedTuple):
    """What the task says of a column: whether it must hold text alone, and whether it must be there."""

    is_text: bool
    is_required: bool


@dataclass(frozen=True)
class Contents:
    """A part of a file, or all of it.

    records: of a table only the columns that were asked for; rows: how many there are; has_columns: whether a person
    can say what they are called; characters: of the whole text, of a table those in its columns of text.
    """

    records: Iterable[Record]
    rows: int
    columns: tuple[str, ...]
    has_columns: bool
    encoding: str
    characters: int
