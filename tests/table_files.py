"""Rows as other programs write them: Parquet, Arrow, the folders of `datasets`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import feather, parquet

Rows = Sequence[Mapping[str, Any]]
Write = Callable[[Path, pa.Table], Path]


def table_of(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist(list(map(dict, rows)))


def write_parquet(folder: Path, table: pa.Table, **options: Any) -> Path:
    parquet.write_table(table, folder / "rows.parquet", **options)
    return folder / "rows.parquet"


def write_small_groups(folder: Path, table: pa.Table) -> Path:
    options = {"compression": "zstd", "row_group_size": 2, "use_dictionary": False, "write_page_checksum": True}
    return write_parquet(folder, table, **options)


def write_ipc_file(folder: Path, table: pa.Table, compression: str | None = None, *, chunk: int = 2) -> Path:
    path = folder / "rows.arrow"
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return path


def write_packed_ipc_file(folder: Path, table: pa.Table) -> Path:
    return write_ipc_file(folder, table, "zstd")


def write_stream(folder: Path, table: pa.Table, name: str = "rows.arrow", *, chunk: int = 2) -> Path:
    with pa.ipc.new_stream(folder / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return folder / name


def write_feather(folder: Path, table: pa.Table) -> Path:
    feather.write_feather(table, folder / "rows.feather")
    return folder / "rows.feather"


def write_dataset(folder: Path, table: pa.Table) -> Path:
    """Write as `datasets.Dataset.save_to_disk` does, in two shards."""
    folder = folder / "saved"
    folder.mkdir(exist_ok=True)
    names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    half = (table.num_rows + 1) // 2
    for name, start in zip(names, (0, half), strict=True):
        write_stream(folder, table.slice(start, half), name)
    state: dict[str, Any] = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": None}))
    return folder


def write_shards(folder: Path, table: pa.Table) -> Path:
    """Write as a hub has it."""
    folder = folder / "hub"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    half = (table.num_rows + 1) // 2
    for i in range(2):
        path = folder / "data" / f"train-{i:05}-of-00002.parquet"
        parquet.write_table(table.slice(i * half, half), path)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def packed(path: Path) -> Path:
    copy = path.with_name(path.name + ".gz")
    copy.write_bytes(gzip.compress(path.read_bytes()))
    return copy


WRITERS: dict[str, Write] = {
    "parquet": write_parquet,
    "parquet in groups": write_small_groups,
    "arrow file": write_ipc_file,
    "packed arrow file": write_packed_ipc_file,
    "arrow stream": write_stream,
    "feather": write_feather,
    "datasets": write_dataset,
    "hub": write_shards,
}
FILES = ("parquet", "arrow file", "arrow stream", "feather")
