"""A table from anywhere takes no memory beyond a bound, runs no code, and is read whole or named in one line."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.table_files import FILES, WRITERS, packed, table_of, write_ipc_file, write_parquet, write_stream

from agfl_models.errors import DataError
from agfl_models.examples import TextRow, read_rows
from agfl_models.reading import memory
from agfl_models.reading.arrow import tables
from agfl_models.reading.arrow.parquet import MAX_FOOTER
from agfl_models.reading.files import data_file
from agfl_models.reading.formats import read_file
from agfl_models.reading.survey import survey

MIB = 1 << 20
ROWS = [{"text": f"word {i % 7} " * 3, "more": [{"en": "a", "x": None}], "n": i} for i in range(40)]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_rows(path, TextRow)
    assert "\n" not in str(error.value)
    return error.value.sentence.replace(f"data: {path}: ", "")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 512 * MIB)


@pytest.mark.parametrize("name", FILES)
def test_a_table_that_is_cut_anywhere_is_never_half_read(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path, table_of(ROWS))
    whole = path.read_bytes()
    assert survey(path).rows == len(ROWS)
    for length in [*range(0, len(whole), 97), len(whole) - 1, len(whole) - 8]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            survey(path)
        assert refusal(path).startswith("must be ")
    path.write_bytes(whole + whole)
    if name != "parquet":  # which says nothing of what lies before it
        assert "must be whole Arrow" in refusal(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_table_is_read_or_named_and_nothing_else(tmp_path: Path, name: str, seed: int) -> None:
    path, rng = WRITERS[name](tmp_path, table_of(ROWS)), random.Random(seed)
    whole = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 2, 20))):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        start = rng.randrange(len(whole) - 8)
        if rng.random() < 0.3:
            damaged[start : start + 8] = rng.choice((-1, 2**63 - 1, 2**31 - 1, 2**40)).to_bytes(
                8, "little", signed=True
            )
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            read_rows(path, TextRow)


def test_a_changed_page_is_known_by_its_checksum(tmp_path: Path) -> None:
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "write_statistics": False}
    path = write_parquet(tmp_path, pa.table({"text": ["first text"]}), **options)
    path.write_bytes(path.read_bytes().replace(b"first text", b"other text"))
    assert refusal(path).startswith("must be whole Parquet, got a broken one: could not verify page integrity")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"text,id\na,1\n", "CSV"),
        (b'{"text": "a"}\n', "JSON"),
        (b"only text", "text"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
        (b"", "empty"),
        (b"\0\1\2", "binary"),
        (b"caf\xe9 \xe9\xe9\xe9\xe9", "binary"),
        (b"PAREabcdPARE", "encrypted Parquet"),
        (b"FEA1\0\0", "the first version of Feather; write it again with pyarrow"),
        (b"\x80\x04\x95\x0b\0", "a pickle, which could run code and is never read"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS to the file; fetch that with git lfs pull",
        ),
    ],
)
@pytest.mark.parametrize(("name", "wanted"), [("a.parquet", "Parquet"), ("a.arrow", "Arrow"), ("a.feather", "Arrow")])
def test_what_is_no_table_is_named_as_what_it_seems_to_be(
    tmp_path: Path, name: str, wanted: str, content: bytes, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path) == f"must be {wanted} as its name says, seems to be {kind}"


def test_each_kind_of_table_is_named_as_the_other(tmp_path: Path) -> None:
    table = table_of(ROWS)
    other = write_parquet(tmp_path, table).rename(tmp_path / "a.arrow")
    assert refusal(other) == "must be Arrow as its name says, seems to be Parquet, which is called .parquet"
    other = write_stream(tmp_path, table).rename(tmp_path / "a.parquet")
    assert refusal(other).endswith("seems to be an Arrow stream, which is called .arrow")
    other = write_ipc_file(tmp_path, table).rename(tmp_path / "a.jsonl")
    assert refusal(other) == "must be text, seems to be Arrow, which is called .arrow"


def arrow_at_most(path: Path) -> int:
    """Return the bytes that pyarrow held at most while the file was read."""
    before: int = pa.total_allocated_bytes()
    most = before
    for part in read_file(data_file(path), is_document=False):
        most = max(most, pa.total_allocated_bytes())
        assert part.rows < 1 << 15
    return most - before


def with_long_texts(num_rows: int) -> pa.Table:
    return pa.table({"text": [f"{i:09} " * 100 for i in range(num_rows)], "id": list(range(num_rows))})


@pytest.mark.parametrize("name", ["parquet", "arrow stream"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    taken = {}
    for num_rows in (20_000, 60_000):
        table = with_long_texts(num_rows)
        is_parquet = name == "parquet"
        path = write_parquet(tmp_path, table) if is_parquet else write_stream(tmp_path, table, chunk=1000)
        del table
        taken[num_rows] = arrow_at_most(path)
        assert survey(path).rows == num_rows
    assert taken[60_000] < max(1.2 * taken[20_000], 2 * MIB)
    assert taken[60_000] < path.stat().st_size or is_parquet


@pytest.mark.usefixtures("little_memory")
def test_a_text_repeated_past_all_memory_is_counted_and_refused(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * MIB]))
    table = pa.table({"text": column})
    for path in (write_parquet(tmp_path, table), write_ipc_file(tmp_path, table, chunk=10_000)):
        assert path.stat().st_size < 2 * MIB
        assert survey(path).characters == 10_000 * MIB
        assert "must fit into half of the memory that is free (256 MiB), got at least " in refusal(path)
        with pytest.raises(DataError, match=r"AGFL-DATA-021"):
            read_rows(path, TextRow, {"text": "other"})


@pytest.mark.usefixtures("little_memory")
def test_what_batches_unpack_to_is_known_before_they_are(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["y" * (300 * MIB)], pa.large_string())})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    assert (tmp_path / "a.arrow").stat().st_size < MIB
    before = pa.total_allocated_bytes()
    assert "must fit into half of the memory that is free" in refusal(tmp_path / "a.arrow")
    assert pa.total_allocated_bytes() - before < MIB
    with pytest.raises(DataError, match="AGFL-DATA-047"):
        survey(tmp_path / "a.arrow")


@pytest.mark.usefixtures("little_memory")
def test_more_rows_than_memory_holds_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, pa.table({"text": pa.nulls(2 * MIB)}), row_group_size=2 * MIB)
    assert "must fit into half of the memory that is free" in refusal(path)
    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema([("text", pa.null())])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.nulls(2 * MIB)], ["text"]))
    assert "must fit into half of the memory that is free" in refusal(tmp_path / "a.arrow")


@pytest.mark.usefixtures("little_memory")
def test_views_that_lie_over_each_other_are_not_looked_through(tmp_path: Path) -> None:
    views = np.zeros((10_000, 4), np.int32)
    views[:, 0], views[:, 1] = MIB, int.from_bytes(b"zzzz", "little")
    buffers = [None, pa.py_buffer(views.tobytes()), pa.py_buffer(b"z" * MIB)]
    table = pa.table({"text": pa.Array.from_buffers(pa.string_view(), len(views), buffers)})
    assert "its views are of more than 256 MiB" in refusal(write_stream(tmp_path, table, chunk=len(views)))


def test_a_packed_table_is_unpacked_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(write_parquet(tmp_path, table_of(ROWS)))
    assert survey(path).rows == len(ROWS)
    monkeypatch.setattr(tables, "MAX_UNPACKED", 1000)
    assert refusal(path) == "must be unpacked first, since a table is read in parts, got more than 0 MiB"


@pytest.mark.parametrize(
    ("length", "footer", "rule"),
    [
        (MAX_FOOTER + 1, b"", f"its footer takes {MAX_FOOTER + 1} bytes, of {MAX_FOOTER} that are allowed"),
        (8, b"\x15\x02\x19\xfc\xff\xff\xff\xff", "must be whole Parquet"),
        (1 << 20, b"", "must be whole Parquet"),
    ],
)
def test_a_footer_that_claims_much_is_refused(tmp_path: Path, length: int, footer: bytes, rule: str) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + footer + b"\0" * 8 + struct.pack("<I", length) + b"PAR1")
    assert rule in refusal(tmp_path / "a.parquet")


def test_a_row_group_of_other_columns_than_it_says_ends_no_process(tmp_path: Path) -> None:
    """Thrift by hand: a schema of one column, and a row group that has none."""
    root = b"\x48\x04root\x15\x02\x00"
    leaf = b"\x15\x0c\x25\x00\x18\x04text\x25\x00\x00"
    group = b"\x19\x0c\x16\x00\x16\x02\x00"
    footer = b"\x15\x02\x19\x2c" + root + leaf + b"\x16\x02\x19\x1c" + group + b"\x00"
    content = b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
    (tmp_path / "a.parquet").write_bytes(content)
    assert "row group metadata has only 0 columns" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_encrypted_columns_are_said_to_be_that(tmp_path: Path, plaintext_footer: bool) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc, name-defined]
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            return key_bytes.hex()

    factory = encryption.CryptoFactory(lambda _: Keys())
    settings = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["text"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    path, table = tmp_path / "a.parquet", table_of(ROWS)
    with parquet.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    line = refusal(path)
    assert "seems to be encrypted Parquet" in line or "Cannot decrypt" in line


@pytest.mark.parametrize(
    ("old", "new"),
    [((0, 1000, 1345), (0, 1000, 1 << 30)), ((0, 1000, 1345), (0, -1000, 1345)), ((0, 1000, 1345), (5, 3, 1))],
)
def test_text_that_would_lie_outside_its_file_is_not_read(
    tmp_path: Path, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    path = write_stream(tmp_path, pa.table({"text": ["a" * 1000, "b" * 345]}))
    content = path.read_bytes()
    assert content.count(struct.pack("<3i", *old)) == 1
    path.write_bytes(content.replace(struct.pack("<3i", *old), struct.pack("<3i", *new)))
    assert refusal(path).startswith("rows 1 to 2: column 'text': must hold what its type says, got ")


def test_bytes_that_are_no_utf8_are_named_by_column(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(struct.pack("<ii", 0, 4)), pa.py_buffer(b"caf\xe9")]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 1, buffers)})
    for writer in (write_parquet, write_stream, write_ipc_file):
        assert "column 'text': must hold what its type says, got " in refusal(writer(tmp_path, table))
