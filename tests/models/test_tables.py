"""The same rows are read from every form; a table that cannot be used is one line with file, column and rule."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.table_files import (
    FILES,
    WRITERS,
    Rows,
    packed,
    table_of,
    write_dataset,
    write_parquet,
    write_shards,
    write_stream,
)

from agfl_models.errors import DataError, NoRows
from agfl_models.examples import Row, TextRow, check_readable, read_data, read_rows
from agfl_models.reading.files import list_owners
from agfl_models.reading.survey import survey
from agfl_models.tasks.question_answering import QuestionRow
from agfl_models.tasks.summarization import SummaryRow
from agfl_models.tasks.translation import TranslationRow

ODD = 'two\nlines, "quotes", ä 🌊 \u2028 and a comma'
CONTEXT = "The tide turns at six. The tide table hangs by the door."
ANSWERS = {"text": ["six", "at six"], "answer_start": [18, 15]}
OF_TASKS: dict[str, tuple[type[Row], Rows]] = {
    "text": (TextRow, [{"text": ODD, "id": 1}, {"text": "", "id": 2}, {"text": ODD, "id": None}]),
    "translation": (TranslationRow, [{"source": f"{ODD}{i}", "target": "b"} for i in range(5)]),
    "summary": (SummaryRow, [{"document": ODD, "summary": "short", "extra": None}, {"document": "a", "summary": "b"}]),
    "answers": (QuestionRow, [{"context": CONTEXT, "question": "When?", "answers": ANSWERS}] * 3),
    "pairs": (
        QuestionRow,
        [{"context": CONTEXT, "question": "What?", "answers": [{"text": "tide", "answer_start": 27}]}] * 2,
    ),
    "answer column": (
        QuestionRow,
        [{"context": CONTEXT, "question": f"What{i}?", "answers": "tide", "answer_start": 27} for i in range(3)],
    ),
    "no answer": (
        QuestionRow,
        [
            {"context": CONTEXT, "question": "Who?", "answers": {"text": [], "answer_start": []}},
            {"context": CONTEXT, "question": "What?", "answers": {"text": ["tide"], "answer_start": [4]}},
        ],
    ),
}


def write_jsonl(folder: Path, rows: Rows) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(path: Path, schema: type[Row] = TextRow, columns: Mapping[str, str] | None = None) -> str:
    with pytest.raises(DataError) as error:
        read_rows(path, schema, columns)
    assert "\n" not in str(error.value)
    return error.value.sentence.replace(f"data: {path}: ", "")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("task", OF_TASKS)
def test_the_same_rows_are_read_from_every_form(tmp_path: Path, task: str, name: str) -> None:
    schema, rows = OF_TASKS[task]
    expected, of_jsonl = read_data(write_jsonl(tmp_path, rows), schema)
    path = WRITERS[name](tmp_path, table_of(rows))
    found, seen = read_data(path, schema)
    assert found == expected
    assert (seen.rows, set(seen.columns)) == (of_jsonl.rows, set(of_jsonl.columns))
    assert seen.encodings.keys() == {"utf-8"}
    assert survey(path) == seen, "a node counts the same before it knows the task"
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    assert seen.characters == sum(map(len, texts)), "lists are read only for a task that asks for them"


@pytest.mark.parametrize("task", ["text", "translation", "summary", "answer column"])
def test_rows_of_a_list_and_of_csv_are_those_of_parquet(tmp_path: Path, task: str) -> None:
    schema, rows = OF_TASKS[task]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    expected = read_rows(write_parquet(tmp_path, table_of(rows)), schema)
    assert read_rows(tmp_path / "rows.json", schema) == expected
    assert read_rows(tmp_path / "rows.csv", schema) == expected


@pytest.mark.parametrize("name", FILES)
def test_packed_tables_are_read(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path, table_of(OF_TASKS["text"][1]))
    assert read_rows(packed(path), TextRow) == read_rows(path, TextRow)
    path.write_bytes(packed(path).read_bytes())
    assert len(read_rows(path, TextRow)) == 3, "also where the name does not say so"


TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("name", WRITERS)
def test_text_is_text_in_whatever_type(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    texts = [ODD * 3, "", "b", "b", ODD * 3, "c"] * 3
    column = pa.array(texts).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    path = WRITERS[name](tmp_path, pa.table({"text": column}))
    assert [row.text for row in read_rows(path, TextRow)] == texts
    assert survey(path).characters == sum(map(len, texts))


def test_a_text_that_stands_often_is_in_memory_once(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["long" * 100] * 1000).dictionary_encode()})
    rows = read_rows(write_stream(tmp_path, table, chunk=1000), TextRow)
    assert len({id(row.text) for row in rows}) == 1


@pytest.mark.parametrize("name", FILES)
def test_what_is_in_a_column_has_a_name_with_dots(tmp_path: Path, name: str) -> None:
    rows = [{"translation": {"en": "sea", "de": "Meer"}}, {"translation": {"en": "tide", "de": "Flut"}}]
    names = {"source": "translation.en", "target": "translation.de"}
    expected = [("sea", "Meer"), ("tide", "Flut")]
    path = WRITERS[name](tmp_path, table_of(rows))
    for one in (path, write_jsonl(tmp_path, rows)):
        assert [row.texts for row in read_rows(one, TranslationRow, names)] == expected
        assert "must have a column 'translation.fr', got 'translation'" in refusal(
            one, TranslationRow, names | {"source": "translation.fr"}
        )
    hint = "; --columns can name what is in it, as in translation."
    assert hint in refusal(path, TranslationRow, {"source": "translation", "target": "translation.de"})
    whole = [{"translation.en": "own", "target": "b", "translation": {"en": "no"}}]
    for one in (WRITERS[name](tmp_path, table_of(whole)), write_jsonl(tmp_path, whole)):
        (row,) = read_rows(one, TranslationRow, {"source": "translation.en"})
        assert row.texts == ("own", "b"), "a column of that very name goes first"


class Secret(pa.ExtensionType):  # type: ignore[misc]
    """What a program of its own may write."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.secret")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"cos\nsystem\n(S'touch /tmp/owned'\ntR."

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Secret:
        return cls()


REFUSED: list[tuple[Any, str]] = [
    (pa.array([b"a"]), "column 'text': must hold text, got binary"),
    (pa.array([["a"]]), "column 'text': must hold text, got list<"),
    (pa.array([{"en": "a"}]), "column 'text': must hold text, got struct<en: string>; --columns can name"),
    (pa.array([date(2020, 1, 1)]), "column 'text': must hold text, got date32"),
    (pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())), "column 'text': must hold text, got map<string, str"),
    (pa.ExtensionArray.from_storage(Secret(), pa.array(["a"])), "(tests.secret)"),
    (pa.array([1]), "row 1: text: Input should be a valid string, got 1"),
    (pa.array([1.5]), "row 1: text: Input should be a valid string, got 1.5"),
    (pa.array([True]), "row 1: text: Input should be a valid string, got True"),
    (pa.array([None]), "row 1: text: Input should be a valid string, got None"),
    (pa.array(["a", None]), ": text: Input should be a valid string, got None"),
    (pa.array([1, 2]).dictionary_encode(), "column 'text': must hold text, got dictionary<values=int64"),
]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("column", "rule"), REFUSED, ids=[str(column.type) for column, _ in REFUSED])
def test_what_is_no_text_is_refused_by_name_if_it_is_asked_for(
    tmp_path: Path, name: str, column: pa.Array, rule: str
) -> None:
    if name in ("parquet", "parquet in groups", "hub") and pa.types.is_dictionary(column.type):
        pytest.skip("Parquet keeps no dictionary of numbers")
    path = WRITERS[name](tmp_path, pa.table({"text": column, "other": ["b"] * len(column)}))
    assert rule.replace("(tests.secret)", "") in refusal(path)
    assert [row.text for row in read_rows(path, TextRow, {"text": "other"})] == ["b"] * len(column)


def test_an_extension_that_nobody_registered_is_refused_by_its_name(tmp_path: Path) -> None:
    for writer in (write_parquet, write_stream):
        path = writer(tmp_path, pa.table({"text": pa.ExtensionArray.from_storage(Secret(), pa.array(["a"]))}))
        line = refusal(path)
        assert line == "column 'text': must hold text, got string (tests.secret)"


@pytest.mark.parametrize("kind", [pa.list_(pa.binary()), pa.struct([("text", pa.list_(pa.binary()))])], ids=str)
def test_answers_are_text_throughout(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"context": ["a"], "question": ["b"], "answers": pa.nulls(1, kind)}
    line = refusal(write_parquet(tmp_path, pa.table(columns)), QuestionRow)
    assert line.startswith("column 'answers': must hold text, numbers, or lists and structures of them, got ")


def test_columns_that_are_missing_or_there_twice_are_named(tmp_path: Path) -> None:
    for writer in WRITERS.values():
        assert "must have a column 'text', got 'a', 'b'" in refusal(writer(tmp_path, table_of([{"a": "1", "b": 2}])))
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    for writer in (write_parquet, write_stream):
        assert refusal(writer(tmp_path, twice)) == "must name each column once, got 'text' again"
    assert refusal(write_parquet(tmp_path, pa.table({"text": pa.array([], pa.string())}))).startswith("must hold at le")


@pytest.mark.parametrize("name", FILES)
def test_one_splits_folder_is_read_and_several_are_named(tmp_path: Path, name: str) -> None:
    table = table_of([{"text": name}])
    saved = write_dataset(tmp_path, table)
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    saved.rename(tmp_path / "dict" / "train")
    assert [row.text for row in read_rows(tmp_path / "dict", TextRow)] == [name]
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    line = "must be one split, got 'train', 'test'; give the folder of one of them"
    assert refusal(tmp_path / "dict") == line
    assert line in refusal(tmp_path), "also further up"
    with pytest.raises(DataError, match=r"^data\.path: .*: must be a folder of owners, got what `datasets` saved of"):
        list_owners(tmp_path / "dict")


def test_a_dataset_is_one_owner_in_a_folder_of_owners(tmp_path: Path) -> None:
    write_dataset(tmp_path, table_of([{"text": "a"}])).rename(tmp_path / "alice")
    write_parquet(tmp_path, table_of([{"text": "a"}])).rename(tmp_path / "bob.parquet")
    assert list(list_owners(tmp_path)[0]) == ["alice", "bob"]


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        ('{"_data_files": [{"filename": "../../etc/passwd"}]}', "_data_files: must be names in its folder, got '../.."),
        ('{"_data_files": [{"filename": 3}]}', "_data_files: must be names in its folder, got '3'"),
        ('{"_data_files": ["gone.arrow"]}', "gone.arrow: cannot be read: No such file or directory"),
        ('{"_data_files": {}}', "_data_files: must be a list, got '{}'"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}', "must have no _indices_data_files"),
        ("[]", "must be what save_to_disk writes, got '[]'"),
        ("[" * 100_000, "must be what save_to_disk writes: "),
        ("{", "must be what save_to_disk writes: "),
    ],
)
def test_a_dataset_that_says_odd_things_of_itself_is_refused(tmp_path: Path, state: str, rule: str) -> None:
    folder = write_dataset(tmp_path, table_of([{"text": "a"}]))
    (folder / "state.json").write_text(state)
    assert rule in refusal(folder)


def test_shards_are_of_one_split_and_all_there(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, table_of([{"text": "a"}, {"text": "b"}]))
    first, second = sorted((folder / "data").iterdir())
    assert [row.text for row in read_rows(second, TextRow)] == ["b"], "one alone, where a person names it"
    copy = (folder / "data" / "test-00000-of-00001.parquet").write_bytes(first.read_bytes())
    assert copy
    rule = "must hold the shards of one split, got 'test', 'train'; give a folder with one of them"
    assert refusal(folder) == f"data: {folder / 'data'}: {rule}"
    (folder / "data" / "test-00000-of-00001.parquet").unlink()
    second.unlink()
    rule = "must hold all 2 shards of 'train', lacks number 00001"
    assert refusal(folder) == f"data: {folder / 'data'}: {rule}"


def test_without_the_extra_a_table_is_one_line_and_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path, table_of([{"text": "a"}]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError) as before:
        check_readable(path)
    line = "needs the extra `data` (pip install 'agfl[data]'): import of pyarrow halted; None in sys.modules"
    assert refusal(path) == before.value.sentence.replace(f"data: {path}: ", "") == line
    assert read_rows(write_jsonl(tmp_path, [{"text": "a"}]), TextRow)


def test_an_old_pyarrow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path, table_of([{"text": "a"}]))
    monkeypatch.setattr(pa, "__version__", "13.0.0")
    assert refusal(path) == "needs pyarrow 21 or newer (pip install 'agfl[data]'), got 13.0.0"


def test_a_table_without_rows_is_counted(tmp_path: Path) -> None:
    for writer in WRITERS.values():
        path = writer(tmp_path, pa.table({"text": pa.array([], pa.string())}))
        assert survey(path).rows == 0
        with pytest.raises(NoRows):
            read_rows(path, TextRow)
