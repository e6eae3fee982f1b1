"""An owner's own data: a file or folder becomes typed rows, and what is wrong with one becomes one line.

.jsonl, .json   one JSON object a line, with named columns
.json           SQuAD: data, paragraphs, qas
.tsv            columns between tabs, named by the first line
other files     plain text, documents between blank lines; a folder: each .txt file is a document
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from agfl_models.errors import ConfigError, DataError
from agfl_models.squad import squad_records
from agfl_models.validation import first_problem, nearest

TEXT_SUFFIX, JSONL_SUFFIX, JSON_SUFFIX, TSV_SUFFIX = ".txt", ".jsonl", ".json", ".tsv"
SUFFIXES = (JSONL_SUFFIX, JSON_SUFFIX, TSV_SUFFIX, TEXT_SUFFIX)
Record = tuple[str, Any]  # where in the file it stands, and what should be a mapping of columns


def _encodable(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be text that UTF-8 can hold, got half a surrogate pair")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(f"must hold text, got {text[:20]!r}")
    return text


ENCODABLE, NOT_BLANK = AfterValidator(_encodable), AfterValidator(_not_blank)
AnyText = Annotated[str, ENCODABLE]
Text = Annotated[AnyText, NOT_BLANK]


class Row(BaseModel, ABC):
    """One example of a task, as an owner writes it; columns that the task does not know do not matter."""

    model_config = ConfigDict(frozen=True)

    @property
    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """All text that the model reads or writes. The first is the source: no two splits share one."""


class TextRow(Row):
    """A document for language modeling; a blank one teaches nothing and does no harm."""

    text: AnyText

    @property
    def texts(self) -> tuple[str, ...]:
        """The document."""
        return (self.text,)


RowT = TypeVar("RowT", bound=Row)


def check_readable(path: Path) -> None:
    """Say early what would stop `read_rows`, whatever the task will be.

    Raises:
        DataError: there is nothing at the path, or it cannot be opened.
    """
    if not path.exists():
        raise DataError(f"data: {path}: no such file or folder")
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        raise DataError(f"data: {path}: cannot be read: {error.strerror}") from None


def parse_columns(text: str) -> dict[str, str]:
    """Return the mapping that `source=en,target=de` writes down.

    Raises:
        ConfigError: the text is built otherwise.
    """
    columns = {}
    for part in filter(None, text.split(",")):
        field, separator, column = part.partition("=")
        if not separator or not field or not column or field in columns:
            raise ConfigError(f"--columns: must be NAME=COLUMN,... (as in source=en,target=de), got {text!r}")
        columns[field] = column
    return columns


def read_rows(path: Path, schema: type[RowT], columns: Mapping[str, str] | None = None) -> list[RowT]:
    """Return an owner's rows.

    Args:
        path: a file, or for language modeling also a folder.
        schema: row class of the task.
        columns: what the task's columns are called in the file, where they are called otherwise.

    Raises:
        DataError: names the file, the row, the field, the rule and the value.
    """
    check_readable(path)
    columns = columns or {}
    for field in columns:
        if field not in schema.model_fields:
            raise DataError(f"data: columns: unknown field {field!r}{nearest(field, list(schema.model_fields))}")
    rows = [_row(schema, path, place, record, columns) for place, record in _records(path, schema, columns)]
    if not rows:
        raise DataError(f"data: {path}: must hold at least one row with {' and '.join(schema.model_fields)}, got none")
    return rows


def format_rows(rows: Iterable[Row]) -> str:
    """Return rows as the content of a .jsonl file that `read_rows` reads."""
    return "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a .jsonl file that `read_rows` reads."""
    path.write_text(format_rows(rows), encoding="utf-8")


def _row(schema: type[RowT], path: Path, place: str, record: Any, columns: Mapping[str, str]) -> RowT:
    where = f"data: {path}: {place}"
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be a JSON object, got {str(record)[:40]!r}")
    named = {field: columns.get(field, field) for field in schema.model_fields}
    for field, column in named.items():
        if column not in record and schema.model_fields[field].is_required():
            raise DataError(f"{where}: must have a column {column!r}, got {', '.join(map(repr, record)) or 'none'}")
    content = {field: record[column] for field, column in named.items() if column in record}
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{where}: {first_problem(error, content)}") from None


def _records(path: Path, schema: type[Row], columns: Mapping[str, str]) -> Iterator[Record]:
    if path.is_file() and path.suffix == TSV_SUFFIX:
        return _tab_separated(path)
    if path.is_file() and path.suffix in (JSONL_SUFFIX, JSON_SUFFIX):
        text = _read(path)
        if path.suffix == JSONL_SUFFIX or _is_json_lines(text):
            return _json_lines(path, text)
        _refuse_columns(path, columns)
        return squad_records(path, _json(path, "file", text))
    if schema is not TextRow:
        what = "a folder" if path.is_dir() else repr(path.suffix)
        raise DataError(
            f"data: {path}: must be a {JSONL_SUFFIX}, {TSV_SUFFIX} or {JSON_SUFFIX} file with "
            f"{' and '.join(schema.model_fields)}, got {what}"
        )
    _refuse_columns(path, columns)
    files = sorted(path.rglob("*" + TEXT_SUFFIX)) if path.is_dir() else []
    documents = [_read(file) for file in files] if path.is_dir() else re.split(r"\n\s*\n", _read(path))
    return ((f"document {i}", {"text": text}) for i, text in enumerate(documents, 1) if text.strip())


def _refuse_columns(path: Path, columns: Mapping[str, str]) -> None:
    if columns:
        raise DataError(f"data: columns: can name those of {JSONL_SUFFIX} and {TSV_SUFFIX} files only, got {path}")


def _is_json_lines(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(record, dict) and "data" in record)


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _json(path, f"line {number}", line)


def _tab_separated(path: Path) -> Iterator[Record]:
    lines = _read(path).removeprefix("\ufeff").split("\n")
    header = lines[0].split("\t")
    if len(set(header)) < len(header):
        raise DataError(f"data: {path}: line 1: must name each column once, got {lines[0][:80]!r}")
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if line.strip(" ") and len(cells) != len(header):
            raise DataError(
                f"data: {path}: line {number}: must have {len(header)} columns as line 1 has, got {len(cells)}"
            )
        if line.strip(" "):
            yield f"line {number}", dict(zip(header, cells, strict=True))


def _json(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {path}: {place}: must be a JSON object, got {text[:40]!r} ({error})") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: {path}: must be UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    except OSError as error:
        raise DataError(f"data: {path}: cannot be read: {error.strerror}") from None
