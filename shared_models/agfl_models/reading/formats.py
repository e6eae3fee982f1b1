"""The records of one file, each with its place there: JSON lines, SQuAD, columns between commas or tabs, plain text."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agfl_models.errors import DataError
from agfl_models.reading.contents import Contents, Record, Wanted
from agfl_models.reading.encodings import decode
from agfl_models.reading.files import TABLES, DataFile, Format, not_read
from agfl_models.reading.kinds import GZIP
from agfl_models.reading.memory import Budget
from agfl_models.reading.packed import unpack
from agfl_models.reading.squad import squad_records

_TEXT = 2  # bytes that a byte of text takes at least until it is rows
_SMALL = 1 << 20  # bytes of a text for which there is room whatever else there is; to ask takes longer than to read it
_DELIMITERS = (",", ";", "\t", "|")
csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document; the usual 128 kB are no limit of ours


def read_file(file: DataFile, wanted: Mapping[str, Wanted] | None = None, *, is_document: bool) -> Iterator[Contents]:
    """Yield what a file holds: a text at once or nothing of it, a table in parts.

    Args:
        file: as `list_files` found it.
        wanted: columns that the records of a table shall have; they have no others.
        is_document: a plain text is one document; otherwise blank lines divide it.

    Raises:
        DataError: names the file, the place, the rule and the value.
    """
    if file.format in TABLES:
        from agfl_models.reading.arrow.tables import read_table  # where it is used: only a table needs pyarrow

        yield from read_table(file, wanted or {})
    else:
        yield _read_text(file, is_document=is_document)


def _read_text(file: DataFile, *, is_document: bool) -> Contents:
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
        case Format.JSON if text.lstrip().startswith("["):
            records = [(f"item {i}", record) for i, record in enumerate(_json(path, "file", text), 1)]
        case Format.JSON if not _is_json_lines(text):
            records, has_columns = list(squad_records(path, _json(path, "file", text))), False
        case _:
            records = list(_json_lines(path, text))
    columns: dict[str, None] = {}
    last: Any = None
    for _, record in records:
        if isinstance(record, dict) and record.keys() != last:  # most have the columns of the one before
            columns |= dict.fromkeys(map(str, record))
            last = record.keys()
    return Contents(records, len(records), tuple(columns), has_columns, encoding, len(text))


def _bytes(file: DataFile) -> bytes:
    try:
        with file.path.open("rb") as opened:
            start, size = opened.read(8), os.fstat(opened.fileno()).st_size
            if size <= _SMALL and not file.is_gzip and not start.startswith(GZIP):
                return start + opened.read()
        budget = Budget(file.path)
        if not start.startswith(GZIP) and file.is_gzip:
            raise DataError(
                "AGFL-DATA-042", f"data: {file.path}: must be gzip as its name says, got {start!r} at its beginning"
            )
        budget.take(_TEXT * size)
        if start.startswith(GZIP):
            return unpack(file.path, budget.free // _TEXT, "must be unpacked in half of the memory that is free")
        return file.path.read_bytes()
    except OSError as error:
        raise not_read(file.path, error) from None


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
        raise DataError(
            "AGFL-DATA-043", f"data: {path}: {place}: must be a JSON object, got {text[:40]!r} ({error})"
        ) from None


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
                    raise DataError(
                        "AGFL-DATA-044", f"data: {path}: line {place}: must name each column once, got {header[:80]!r}"
                    )
            elif any(cell.strip() for cell in cells):
                while len(cells) > len(names) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(names):
                    raise DataError(
                        "AGFL-DATA-045",
                        f"data: {path}: line {place}: must have {len(names)} columns as line {first_line} has, "
                        f"got {len(cells)}",
                    )
                yield f"line {place}", {name: cell for name, cell in zip(names, cells, strict=True) if name}
    except csv.Error as error:
        raise DataError(
            "AGFL-DATA-046", f"data: {path}: line {number}: must have quotes in pairs, got a broken row: {error}"
        ) from None
