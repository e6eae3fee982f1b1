"""An owner's own data: a file or folder becomes typed rows, and what is wrong with one becomes one line.

.jsonl          one JSON object a line, with named columns
.csv, .tsv      columns between commas (or semicolons, or tabs), named by the first line
.json           as .jsonl, or a list of such objects, or SQuAD: data, paragraphs, qas
.parquet        typed columns; so are .arrow (.feather) and folders that `datasets` saved
.txt            plain text, documents between blank lines; in a folder each file is a document
Each may be packed (.gz); a folder holds any of them; `reading` has the details.
"""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from agfl_models.errors import ConfigError, DataError, NoRows
from agfl_models.reading.contents import Wanted
from agfl_models.reading.files import DataFile, Format, list_files
from agfl_models.reading.formats import read_file
from agfl_models.reading.survey import Survey
from agfl_models.validation import first_problem, nearest

JSONL_SUFFIX = Format.JSONL.value
_COLUMNS = ".jsonl, .csv, .tsv, .parquet, .arrow"
_MISSING = object()
_BLOCK = 1024  # rows that are checked together


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be text that UTF-8 can hold, got half a surrogate pair") from None
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
    def texts(self) -> tuple[str, ...]:
        """All text that the model reads or writes; none of a task on something else."""
        return ()

    @property
    def split_key(self) -> bytes:
        """What no two splits share: the first text, or of a row without text all of it."""
        return (self.texts[0] if self.texts else self.model_dump_json()).encode()

    @property
    def is_blank(self) -> bool:
        """Whether a row that should hold text holds none."""
        return bool(self.texts) and not any(text.strip() for text in self.texts)

    def changed(self, content: Mapping[str, Any]) -> str | None:
        """Say what is otherwise in the row than its owner wrote in `content`; None where nothing is."""
        return None


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
        DataError: there is nothing at the path, it cannot be opened, or it is of a kind that is not read.
    """
    if not list_files(path).files:
        raise NoRows("AGFL-DATA-001", f"data: {path}: must hold at least one file that is not hidden, got none")


def parse_columns(text: str) -> dict[str, str]:
    """Return the mapping that `source=en,target=de` writes down.

    Raises:
        ConfigError: the text is built otherwise.
    """
    columns = {}
    for part in filter(None, text.split(",")):
        field, separator, column = part.partition("=")
        if not separator or not field or not column or field in columns:
            raise ConfigError(
                "AGFL-CONFIG-012", f"--columns: must be NAME=COLUMN,... (as in source=en,target=de), got {text!r}"
            )
        columns[field] = column
    return columns


def read_rows(path: Path, schema: type[RowT], columns: Mapping[str, str] | None = None) -> list[RowT]:
    """Return an owner's rows.

    Args:
        path: a file, or a folder of files.
        schema: row class of the task.
        columns: what the task's columns are called in the file, where they are called otherwise.

    Raises:
        DataError: names the file, the row, the field, the rule and the value.
    """
    return read_data(path, schema, columns)[0]


def read_data(path: Path, schema: type[RowT], columns: Mapping[str, str] | None = None) -> tuple[list[RowT], Survey]:
    """Return an owner's rows and what they were found in; raises as `read_rows`."""
    listing, columns = list_files(path), columns or {}
    for field in columns:
        if field not in schema.model_fields:
            raise DataError(
                "AGFL-DATA-002", f"data: columns: unknown field {field!r}{nearest(field, list(schema.model_fields))}"
            )
    survey, rows = Survey(path, listing.left_out), list[RowT]()
    for file in listing.files:
        rows += _rows_of(file, schema, columns, survey, is_document=file.path != path)
    if not rows:
        raise NoRows(
            "AGFL-DATA-003",
            f"data: {path}: must hold at least one row with {' and '.join(_required(schema))}, got none",
        )
    return rows, survey


def format_rows(rows: Iterable[Row]) -> str:
    """Return rows as the content of a .jsonl file that `read_rows` reads."""
    encode = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes one for each row
    return "".join([encode(row.model_dump()) + "\n" for row in rows])


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a .jsonl file that `read_rows` reads."""
    path.write_text(format_rows(rows), encoding="utf-8")


def _required(schema: type[Row]) -> list[str]:
    return [name for name, field in schema.model_fields.items() if field.is_required()]


def _rows_of(
    file: DataFile, schema: type[RowT], columns: Mapping[str, str], survey: Survey, *, is_document: bool
) -> list[RowT]:
    if file.format is Format.TEXT and schema is not TextRow:
        raise DataError(
            "AGFL-DATA-004",
            f"data: {file.path}: must be a {_COLUMNS} or .json file with "
            f"{' and '.join(_required(schema))}, got {file.format.value!r}",
        )
    wanted = {
        columns.get(name, name): Wanted(is_text=field.annotation is str, is_required=field.is_required())
        for name, field in schema.model_fields.items()
    }
    fields = [(name, columns.get(name, name), field.is_required()) for name, field in schema.model_fields.items()]
    rows = list[RowT]()
    for i, contents in enumerate(read_file(file, wanted, is_document=is_document)):
        if columns and not contents.has_columns:
            raise DataError("AGFL-DATA-005", f"data: columns: can name those of {_COLUMNS} files only, got {file.path}")
        survey.add(file.path, contents, is_new=i == 0)
        records = iter(contents.records)
        while block := list(islice(records, _BLOCK)):
            found = [_content(fields, file.path, place, record) for place, record in block]
            try:
                made = valid_rows(schema, found)
            except InvalidRow as error:
                raise DataError("AGFL-DATA-008", f"data: {file.path}: {block[error.number][0]}: {error}") from None
            changes = (row.changed(content) for row, content in zip(made, found, strict=True))
            survey.changes.update(change for change in changes if change)
            rows += made
    return rows


class InvalidRow(Exception):
    """What is wrong with a row; number: which one it is, from 0."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(problem)
        self.number = number


def valid_rows(schema: type[RowT], contents: Sequence[Mapping[str, Any]]) -> list[RowT]:
    """Return the rows that these columns make, all in one call, which is faster; raises InvalidRow for the first."""
    try:
        return _list_of(schema).validate_python(contents)
    except ValidationError as error:
        number = int(error.errors(include_url=False)[0]["loc"][0])
        try:
            schema.model_validate(contents[number])
        except ValidationError as first:
            raise InvalidRow(number, first_problem(first, contents[number])) from None
        raise


@cache
def _list_of(schema: type[RowT]) -> TypeAdapter[list[RowT]]:
    return TypeAdapter(list[schema])  # type: ignore[valid-type]  # the class is known when it runs


def _content(fields: Sequence[tuple[str, str, bool]], path: Path, place: str, record: Any) -> dict[str, Any]:
    """Return what a row is made of; fields: of each its name, its column, and whether it must be there."""
    if not isinstance(record, dict):
        raise DataError("AGFL-DATA-006", f"data: {path}: {place}: must be a JSON object, got {str(record)[:40]!r}")
    content = {}
    for field, column, is_required in fields:
        if (value := _value(record, column)) is not _MISSING:
            content[field] = value
        elif is_required:
            got = ", ".join(map(repr, record)) or "none"
            raise DataError("AGFL-DATA-007", f"data: {path}: {place}: must have a column {column!r}, got {got}")
    return content


def _value(record: dict[str, Any], column: str) -> Any:
    """Return what a record has in a column, or in a place in one: translation.en."""
    if column in record:
        return record[column]
    found: Any = record
    for name in column.split("."):
        if not isinstance(found, dict) or name not in found:
            return None if found is None else _MISSING
        found = found[name]
    return found
