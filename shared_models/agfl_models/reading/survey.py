"""What was found in an owner's files, in a line for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agfl_models.reading.contents import Contents
from agfl_models.reading.files import list_files
from agfl_models.reading.formats import read_file

FEW_ROWS = 3
TOO_FEW = "too few to learn from or to be judged by, and a model may repeat them word for word"
_SHOWN = 8  # names in a line


@dataclass
class Survey:
    """Sums over an owner's files, and by name what is odd in them."""

    path: Path
    left_out: tuple[Path, ...] = ()
    files: int = 0
    rows: int = 0
    characters: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    encodings: dict[str, list[Path]] = field(default_factory=dict)
    changes: Counter[str] = field(default_factory=Counter)

    def add(self, path: Path, contents: Contents, *, is_new: bool = True) -> None:
        """Count one more part of a file; is_new: it is the first one of it."""
        self.rows += contents.rows
        self.characters += contents.characters
        if is_new:
            self.files += 1
            self.columns |= dict.fromkeys(contents.columns)
            self.encodings.setdefault(contents.encoding, []).append(path)

    def add_all(self, other: Survey) -> None:
        """Count the files of another owner, too."""
        self.files += other.files
        self.rows += other.rows
        self.characters += other.characters
        self.columns |= other.columns
        self.left_out += other.left_out
        self.changes += other.changes
        for encoding, paths in other.encodings.items():
            self.encodings.setdefault(encoding, []).extend(paths)

    @property
    def line(self) -> str:
        """Return what was read."""
        columns = shorten(list(self.columns)) or "none"
        what = f"{counted(self.files, 'file')}, {counted(self.rows, 'row')}, columns {columns}"
        return f"{what}, {counted(self.characters, 'character')}, {', '.join(sorted(self.encodings)) or 'no encoding'}"

    @property
    def doubts(self) -> list[str]:
        """Return a line for each thing that was perhaps read otherwise than its owner meant it."""
        lines = []
        for encoding, paths in sorted(self.encodings.items()):
            if encoding in ("cp1252", "latin-1"):
                what = f"read as {encoding}, which it seems to be; UTF-8 leaves no doubt"
                lines.append(f"{shorten([str(path) for path in paths])}: {what}")
        for change, number in sorted(self.changes.items()):
            lines.append(f"{self.path}: {number:,} of {counted(self.rows, 'row')}: {change}")
        if self.left_out:
            lines.append(f"not read: {shorten([str(path) for path in self.left_out])}")
        return lines

    @property
    def warnings(self) -> list[str]:
        """Return the doubts, and whether there is too little to train on."""
        if not 0 < self.rows <= FEW_ROWS:
            return self.doubts
        return [*self.doubts, f"{self.path}: only {counted(self.rows, 'row')}: {TOO_FEW}"]


def survey(path: Path) -> Survey:
    """Return what is in an owner's files, whatever the task will be.

    Raises:
        DataError: names the file, the place, the rule and the value.
    """
    listing = list_files(path)
    found = Survey(path, listing.left_out)
    for file in listing.files:
        for i, part in enumerate(read_file(file, is_document=path != file.path)):
            found.add(file.path, part, is_new=i == 0)
    return found


def counted(number: int, what: str) -> str:
    """Return "1 row" or "1,200 rows"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def shorten(names: Sequence[str]) -> str:
    """Return the names in a line, those past the first ones as their number."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
