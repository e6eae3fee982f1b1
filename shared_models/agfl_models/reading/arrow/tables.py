"""Tables with typed columns, Parquet and Arrow: read in parts, only what text there is, and nothing that runs code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from agfl_models.errors import DataError
from agfl_models.reading.arrow.columns import (
    array_at,
    characters,
    check_values,
    described,
    field_at,
    holds_text,
    inner_name,
    is_plain,
    is_scalar,
    values,
)
from agfl_models.reading.arrow.ipc import IpcTable
from agfl_models.reading.contents import Contents, Record, Wanted
from agfl_models.reading.files import DataFile, Format
from agfl_models.reading.kinds import ARROW, GZIP, PARQUET, STREAM, kind_of
from agfl_models.reading.memory import ROW, Budget
from agfl_models.reading.packed import unpack

if TYPE_CHECKING:
    import pyarrow

MAX_UNPACKED = 256 << 20  # bytes; parts of a packed table cannot be read on their own
_START = 4096
_SLICE = 1024  # rows
_MAGIC = {Format.PARQUET: (PARQUET,), Format.ARROW: (ARROW, STREAM)}
_NAMES = {Format.PARQUET: "Parquet", Format.ARROW: "Arrow"}


class _Table(Protocol):
    @property
    def schema(self) -> pyarrow.Schema: ...

    def batches(self, columns: list[str]) -> Iterator[pyarrow.RecordBatch]: ...


def read_table(file: DataFile, wanted: Mapping[str, Wanted]) -> Iterator[Contents]:
    """Yield what a table holds, a part at a time.

    Args:
        file: as `list_files` found it.
        wanted: the columns that the records shall have; they have no others.

    Raises:
        DataError: names the file, the place, the rule and the value.
    """
    where, budget = f"data: {file.path}", Budget(file.path)
    with _one_line(file):
        table = _open(file, budget)
        schema = table.schema
        _check_names(where, schema)
        found = [column for column, kind in wanted.items() if _check_column(where, schema, column, kind)]
        texts = [field.name for field in schema if holds_text(field)]
        roots = [column if column in schema.names else column.split(".")[0] for column in found]
        read, place = list(dict.fromkeys([*texts, *roots])), 0
        yield Contents((), 0, tuple(schema.names), has_columns=True, encoding="utf-8", characters=0)
        for batch in table.batches(read):
            budget.take(batch.num_rows * ROW)
            _check_values(where, place, batch, read, budget.free)
            budget.take(sum(characters(array_at(batch, column)) for column in found))
            size = sum(characters(batch.column(name)) for name in texts)
            records = _records(file, batch, found, place)
            yield Contents(
                records, batch.num_rows, tuple(schema.names), has_columns=True, encoding="utf-8", characters=size
            )
            place += batch.num_rows


def _open(file: DataFile, budget: Budget) -> _Table:
    import pyarrow

    with file.path.open("rb") as opened:
        start = opened.read(_START)
    is_packed = start.startswith(GZIP)
    if is_packed:
        content = unpack(file.path, MAX_UNPACKED, "must be unpacked first, since a table is read in parts")
        budget.take(len(content))
        start = content[:_START]
    elif file.is_gzip:
        raise DataError(
            "AGFL-DATA-017", f"data: {file.path}: must be gzip as its name says, seems to be {kind_of(start)}"
        )
    if not start.startswith(_MAGIC[file.format]):
        rule = f"must be {_NAMES[file.format]} as its name says"
        raise DataError("AGFL-DATA-018", f"data: {file.path}: {rule}, seems to be {kind_of(start)}")
    source = pyarrow.BufferReader(content) if is_packed else pyarrow.memory_map(os.fsencode(file.path))
    if file.format is Format.ARROW:
        return IpcTable.open(source, budget)
    from agfl_models.reading.arrow.parquet import ParquetTable

    return ParquetTable.open(source, budget)


@contextmanager
def _one_line(file: DataFile) -> Iterator[None]:
    """Turn what pyarrow says of a broken file into a line that names it."""
    import struct

    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, struct.error, IndexError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            "AGFL-DATA-019", f"data: {file.path}: must be whole {_NAMES[file.format]}, got a broken one: {reason}"
        ) from None


def _check_names(where: str, schema: pyarrow.Schema) -> None:
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise DataError("AGFL-DATA-020", f"{where}: must name each column once, got {twice!r} again")


def _check_column(where: str, schema: pyarrow.Schema, column: str, wanted: Wanted) -> bool:
    """Return whether the table has this column; raise DataError if it must have it, or if what it holds is not read."""
    field = field_at(schema, column)
    if field is None:
        if wanted.is_required:
            raise DataError(
                "AGFL-DATA-021",
                f"{where}: must have a column {column!r}, got {', '.join(map(repr, schema.names)) or 'none'}",
            )
        return False
    if not is_plain(field) or (wanted.is_text and not _is_single(field.type)):
        rule = "must hold text" if wanted.is_text else "must hold text, numbers, or lists and structures of them"
        name = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", errors="replace")
        kind = f"{described(field.type)[:200]}{f' ({name})' if name else ''}"
        inner = inner_name(field)
        hint = f"; --columns can name what is in it, as in {column}.{inner}" if inner else ""
        raise DataError("AGFL-DATA-022", f"{where}: column {column!r}: {rule}, got {kind}{hint}")
    return True


def _is_single(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_dictionary(kind)) or is_scalar(kind)


def _check_values(where: str, place: int, batch: pyarrow.RecordBatch, columns: list[str], max_length: int) -> None:
    for name in columns:
        try:
            check_values(batch.column(name), max_length)
        except ValueError as error:  # of pyarrow, too
            rows = f"rows {place + 1:,} to {place + batch.num_rows:,}"
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                "AGFL-DATA-023", f"{where}: {rows}: column {name!r}: must hold what its type says, got {reason}"
            ) from None


def _records(file: DataFile, batch: pyarrow.RecordBatch, wanted: list[str], place: int) -> Iterator[Record]:
    for start in range(0, batch.num_rows, _SLICE):
        part = batch.slice(start, _SLICE)
        with _one_line(file):
            columns: list[list[Any]] = [values(array_at(part, column)) for column in wanted]
        for i in range(part.num_rows):
            yield (
                f"row {place + start + i + 1}",
                {name: column[i] for name, column in zip(wanted, columns, strict=True)},
            )
