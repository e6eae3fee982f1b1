"""Parquet, a few thousand rows at a time: how many, so that they take some megabytes, is for the file to say."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agfl_models.reading.arrow.columns import longest
from agfl_models.reading.kinds import ENCRYPTED, PARQUET
from agfl_models.reading.memory import ROW, Budget

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

MAX_FOOTER = 16 << 20  # bytes
_FOOTER = 256  # bytes in memory that one of them can take, as measured: 2.7 GB of 12 MB
_BATCH_BYTES, _MAX_BATCH = 16 << 20, 1 << 14
_PAGES = 1 << 18  # bytes that are read from the disk at once


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file.

    A text that stands often is in it once, in a dictionary, and a few bytes can repeat it past all memory. So the
    dictionaries of a row group are looked at before its rows are read. Texts in lists stay in dictionaries: of lists
    nobody says how long they are; and the others do not, since pyarrow makes one of all texts of a row group.
    """

    file: parquet.ParquetFile
    dictionaries: parquet.ParquetFile
    schema: pyarrow.Schema

    @classmethod
    def open(cls, source: pyarrow.NativeFile, budget: Budget) -> ParquetTable:
        """Return the table; raise ValueError or an error of pyarrow's where it is broken or cut."""
        from pyarrow import parquet

        _check_footer(source, budget)
        metadata = parquet.read_metadata(source)
        budget.need(metadata.num_rows * ROW)
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        leaves = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "STRING"]

        def reader(in_dictionaries: list[str]) -> parquet.ParquetFile:
            source.seek(0)
            return parquet.ParquetFile(
                source,
                metadata=metadata,
                read_dictionary=in_dictionaries,
                buffer_size=_PAGES,
                pre_buffer=False,
                page_checksum_verification=True,
            )

        file = reader([leaf.path for leaf in leaves if leaf.max_repetition_level > 0])
        return cls(file, reader([leaf.path for leaf in leaves]), file.schema_arrow)

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """Yield batches with these columns; raise ValueError if there are more or fewer rows than the file says."""
        metadata, count = self.file.metadata, 0
        for group in range(metadata.num_row_groups):
            size = self._batch_size(group, columns)
            for batch in self.file.iter_batches(size, [group], list(columns), use_threads=False):
                count += batch.num_rows
                yield batch
        if count != metadata.num_rows:
            raise ValueError(f"it says that it has {metadata.num_rows} rows and holds {count}")

    def _batch_size(self, group: int, columns: Sequence[str]) -> int:
        """Return how many rows of a row group are read at once.

        Nothing is asked of what it says of its columns: where those are encrypted, or others than in the schema,
        pyarrow ends the process.
        """
        said = self.file.metadata.row_group(group)
        a_row: int = said.total_byte_size // max(1, said.num_rows)
        for first in self.dictionaries.iter_batches(1, [group], list(columns), use_threads=False):
            a_row = max(a_row, sum(map(longest, first.columns)))
            break
        return max(1, min(_MAX_BATCH, _BATCH_BYTES // max(1, a_row)))


def _check_footer(source: pyarrow.NativeFile, budget: Budget) -> None:
    size = source.size()
    source.seek(max(0, size - 8))
    tail = bytes(source.read(8))
    if tail[4:] == ENCRYPTED:
        raise ValueError("it is encrypted")
    if size < 12 or tail[4:] != PARQUET:
        raise ValueError(f"it ends in {tail[4:]!r}")
    (length,) = struct.unpack("<I", tail[:4])
    if length > MAX_FOOTER:
        raise ValueError(f"its footer takes {length} bytes, of {MAX_FOOTER} that are allowed")
    budget.need(length * _FOOTER)
