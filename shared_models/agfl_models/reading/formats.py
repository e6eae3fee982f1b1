"""The records of one file, each with its place there: JSON lines, SQuAD, columns between commas or tabs, plain text."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agfl_models.errors import DataError
from agfl_models.reading.encodings import decode
from agfl_models.reading.files import DataFile, Format
from agfl_models.reading.squad import squad_records

Record = tuple[str, Any]  # where in the file it stands, and what should be a mapping of columns
_GZIP_MAGIC = b"\x1f\x8b"
_DELIMITERS = (",", ";", "\t", "|")
csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document; the usual 128 kB are no limit of ours


@dataclass(frozen=True)
class Contents:
    """What a file holds; has_columns: whether a person can say what they are called; characters: of the whole file."""

    records: list[Record]
    columns: tuple[str, ...]
    has_columns: bool
    encoding: str
    characters: int


def read_file(file: DataFile, *, is_document: bool) -> Contents:
    """Return what a file holds, or nothing of it.

    Args:
        file: as `list_files` found it.
        is_document: a plain text is one document; otherwise blank lines divide it.

    Raises:
        DataError: names the file, the place, the rule and the value.
    """
    path = file.path
    text, encoding = decode(_bytes(file), f"data: {path}")
    has_columns = file.format is not Format.TEXT
    match file.format:
        case Format.CSV:
            records = list(_commas(path, text))
        case Format.TSV:
            records = _tabs(path, text)
        case Format.TEXT:
            documents = [text] if is_document else re.split(r"\n\s*\n", text)
            records = [(f"document {i}", {"text": one}) for i, one in enumerate(documents, 1) if one.strip()]
        case Format.JSON if not _is_json_lines(text):
            records, has_columns = list(squad_records(path, _json(path, "file", text))), False
        case _:
            records = list(_json_lines(path, text))
    columns: dict[str, None] = {}
    for _, record in records:
        if isinstance(record, dict):
            columns |= dict.fromkeys(map(str, record))
    return Contents(records, tuple(columns), has_columns, encoding, len(text))


def _bytes(file: DataFile) -> bytes:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise DataError(f"data: {file.path}: cannot be read: {error.strerror}") from None
    if not content.startswith(_GZIP_MAGIC):
        if file.is_gzip:
            raise DataError(f"data: {file.path}: must be gzip as its name says, got {content[:8]!r} at its beginning")
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: {file.path}: must be whole gzip, got a broken one: {error}") from None


def _is_json_lines(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(record, dict) and isinstance(record.get("data"), list))


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _json(path, f"line {number}", line)


def _json(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {path}: {place}: must be a JSON object, got {text[:40]!r} ({error})") from None


def _tabs(path: Path, text: str) -> list[Record]:
    """Return the rows of a .tsv file, which some programs write with quotes and others without."""
    if re.search(r'(^|\t)"', text, re.MULTILINE):
        try:
            rows = list(_rows(path, text, "\t", is_quoted=True))
        except DataError:
            if re.search(r'(^|\t)"[^\t\n]*""', text, re.MULTILINE):  # as only programs write it
                raise
            rows = []  # the quotes are the text's own
        if rows and not any("\t" in str(cell) for _, row in rows for cell in row.values()):
            return rows
        try:
            return list(_rows(path, text, "\t", is_quoted=False))
        except DataError:
            if rows:
                return rows
            raise
    return list(_rows(path, text, "\t", is_quoted=False))


def _commas(path: Path, text: str) -> Iterator[Record]:
    """Yield the rows of a .csv file, whichever character stands between its columns: Excel's depends on the country."""
    first, _, rest = text.partition("\n")
    if match := re.fullmatch(r'"?sep=(.)"?', first.strip(" ")):
        return _rows(path, rest, match[1], is_quoted=True, first_line=2)

    def columns(delimiter: str) -> int:
        try:
            return len(next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), []))
        except csv.Error:
            return 0

    return _rows(path, text, max(_DELIMITERS, key=columns), is_quoted=True)  # the first one of the best


def _rows(path: Path, text: str, delimiter: str, *, is_quoted: bool, first_line: int = 1) -> Iterator[Record]:
    header = match[0] if (match := re.search(r"\S[^\n]*", text)) else ""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
        skipinitialspace=f'{delimiter} "' in header,
        strict=True,
    )
    names: list[str] | None = None
    number, above = first_line, first_line
    try:
        for cells in reader:
            place, number = number, reader.line_num + above
            if names is None and not any(cell.strip() for cell in cells):
                continue  # a blank line above the header
            if names is None:
                first_line = place
                names = [cell.strip() for cell in cells]
                named = [name for name in names if name]
                if len(set(named)) < len(named):
                    raise DataError(f"data: {path}: line {place}: must name each column once, got {header[:80]!r}")
            elif any(cell.strip() for cell in cells):
                while len(cells) > len(names) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(names):
                    raise DataError(
                        f"data: {path}: line {place}: must have {len(names)} columns as line {first_line} has, "
                        f"got {len(cells)}"
                    )
                yield f"line {place}", {name: cell for name, cell in zip(names, cells, strict=True) if name}
    except csv.Error as error:
        raise DataError(f"data: {path}: line {number}: must have quotes in pairs, got a broken row: {error}") from None
