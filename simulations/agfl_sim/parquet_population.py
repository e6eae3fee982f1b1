"""A Parquet file of all owners' rows, one owner's after another: any owner's are found without reading the others'."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from agfl_models.errors import ConfigError
from agfl_models.examples import format_rows
from agfl_models.files.durable_files import written_atomically
from agfl_models.reading.files import data_file
from agfl_models.validation import first_problem
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.identity.identity import NAME_RULE
from agfl_sim.population import Population

if TYPE_CHECKING:
    import pyarrow

OWNER = "owner"
COPY = ".rows.arrow"
_BATCH = 1 << 14  # rows


class ArrowNames(Sequence[str]):
    """Names in one Arrow array."""

    def __init__(self, names: pyarrow.StringArray) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # nobody takes slices
        return str(self._names[number].as_py())


class ParquetPopulation(Population):
    """The owners of a file whose column `owner`, or what `data.columns` calls it, names whose each row is.

    A Parquet file is read in parts of up to a million rows. So the rows are copied once to an Arrow file beside the
    owners' files, from which the system maps those few that somebody looks at.
    Legend: N owners, in the order of their names.

    Raises:
        ConfigError: it is no such file; names the rule.
    """

    def __init__(self, config: RunConfig, path: Path, folder: Path) -> None:
        super().__init__(folder)
        self._path, self._row = path, config.task.row
        data_file(path)  # says so where pyarrow is not installed
        columns = config.data.columns
        self._owner = columns.get(OWNER, OWNER)
        with self._one_line():
            schema = self._open().schema_arrow
            self._columns = {name: columns.get(name, name) for name in self._row.model_fields}
            missing = [self._owner] if self._owner not in schema.names else []
            missing += [
                self._columns[name]
                for name, field in self._row.model_fields.items()
                if field.is_required() and self._columns[name] not in schema.names
            ]
            if missing:
                raise self._broken(f"must have a column {missing[0]!r}, got {', '.join(schema.names)}")
            self._columns = {name: column for name, column in self._columns.items() if column in schema.names}
            found, starts, rows = self._runs()
        self._names, self._starts, self._ends = self._sorted(found, starts, rows)
        self._batches: pyarrow.RecordBatchFileReader | None = None
        self._firsts: list[int] = []  # row of each batch of the copy
        self.notes = (f"data     {len(self._names):,} owners in {path}: {rows:,} rows; each is read when it is asked",)

    @property
    def names(self) -> Sequence[str]:
        """As of `Population`."""
        return self._names

    @property
    def identity(self) -> str:
        """As of `Population`: its bytes, and what its columns are called."""
        with self._one_line(), self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"the file with SHA-256 {digest}, read as {self._owner}, {self._columns}"

    def write(self, *, is_new: bool = True) -> None:
        """Copy the rows to where they can be mapped."""
        import pyarrow as pa

        super().write(is_new=is_new)
        path, columns = self.folder / COPY, list(dict.fromkeys(self._columns.values()))
        if path.exists() and not is_new:
            return  # whole, and of this population
        with self._one_line():
            schema = pa.schema([self._open().schema_arrow.field(column) for column in columns])
        # Another process may have mapped the old one, and would die of a shorter file.
        with (
            self.writing(self.folder),
            written_atomically(path, 0o600) as file,
            pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as copy,
        ):
            for batch in self._parts(columns):
                copy.write_batch(batch)

    def content(self, number: int) -> bytes:
        """As of `Population`."""
        rows = []
        for place, record in self._records(int(self._starts[number]), int(self._ends[number])):
            content = {name: record[column] for name, column in self._columns.items()}
            try:
                rows.append(self._row.model_validate(content))
            except ValidationError as error:
                raise self._broken(f"row {place + 1}: {first_problem(error, content)}") from None
        return format_rows(rows).encode()

    def _records(self, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows [start, end) with their places."""
        import pyarrow as pa

        while start < end:
            with self._one_line():
                if self._batches is None:
                    batches = pa.ipc.open_file(pa.memory_map(str(self.folder / COPY)))
                    sizes = (batches.get_batch(i).num_rows for i in range(batches.num_record_batches))
                    self._firsts = [0, *accumulate(sizes)]
                    self._batches = batches
                number = bisect_right(self._firsts, start) - 1
                batch = self._batches.get_batch(number)
                found = batch.slice(start - self._firsts[number], end - start).to_pylist()
            yield from enumerate(found, start)
            start += len(found)

    def _open(self) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=1 << 18)

    def _parts(self, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
        with self._one_line():
            yield from self._open().iter_batches(_BATCH, columns=columns, use_threads=False)

    def _runs(self) -> tuple[pyarrow.StringArray, np.ndarray[Any, Any], int]:
        """Return whose each run of rows is, where it begins, and how many rows there are."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names, starts, rows, last = list[Any](), list[Any](), 0, None
        for batch in self._parts([self._owner]):
            owners = pc.cast(batch.column(0), pa.string())
            if owners.null_count:
                place = rows + int(pc.index(pc.is_null(owners), True).as_py())
                raise self._broken(f"row {place + 1}: column {self._owner!r} must name an owner, got null")
            changes = np.ones(len(owners), bool)
            changes[1:] = pc.not_equal(owners[1:], owners[:-1]).to_numpy(zero_copy_only=False)
            changes[:1] = len(owners) > 0 and owners[0].as_py() != last
            places = np.flatnonzero(changes)
            names.append(owners.take(pa.array(places)))
            starts.append(places + rows)
            rows, last = rows + len(owners), owners[-1].as_py()
        if not rows:
            raise self._broken("must hold one row or more, got none")
        return pa.concat_arrays(names), np.concatenate(starts), rows

    def _sorted(
        self, found: pyarrow.StringArray, starts: np.ndarray[Any, Any], rows: int
    ) -> tuple[ArrowNames, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return names, sorted (N), and where the rows of each begin and end, int64 (N)."""
        import pyarrow.compute as pc

        ends = np.append(starts[1:], rows)
        order = pc.sort_indices(found)
        names = found.take(order)
        wrong = pc.index(pc.match_substring_regex(names, NAME_RULE), False).as_py()
        if wrong >= 0:
            raise self._broken(f"column {self._owner!r} must hold names that match {NAME_RULE}, got {names[wrong]}")
        twice = pc.index(pc.equal(names[1:], names[:-1]), True).as_py()
        if twice >= 0:
            rule = f"must hold the rows of each owner one after another: sort it by {self._owner!r}"
            raise self._broken(f"{rule}, got {names[twice]} again")
        places = order.to_numpy()
        return ArrowNames(names), starts[places], ends[places]

    def _broken(self, line: str) -> ConfigError:
        return ConfigError("AGFL-CONFIG-245", f"data.path: {self._path}: {line}")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise self._broken(f"must be a whole Parquet file, got a broken one: {reason}") from None


def population_of(config: RunConfig, folder: Path) -> ParquetPopulation | None:
    """Return the owners of the one file that `data.path` names; None where it names a folder, or nothing.

    Raises:
        ConfigError: as `ParquetPopulation`.
    """
    path = config.data.path
    return ParquetPopulation(config, path, folder) if path is not None and path.is_file() else None
