"""Rows come back as they were written, in every form; what cannot be read is one line that names file, row and rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import ConfigError, DataError
from agfl_models.examples import Row, TextRow, check_readable, parse_columns, read_rows, write_rows
from agfl_models.tasks.question_answering import QuestionRow
from agfl_models.tasks.summarization import SummaryRow
from agfl_models.tasks.translation import TranslationRow

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() != "")
SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\r\ni\nj\x00k\ufeffl"
CONTEXT = "The tide turns at six. The tide table hangs by the door."
ROWS: dict[str, Row] = {
    "text": TextRow(text=SEPARATORS),
    "translation": TranslationRow(source=SEPARATORS, target="ä"),
    "summary": SummaryRow(document="long", summary=SEPARATORS),
    "question": QuestionRow.model_validate({"context": CONTEXT, "question": "When?", "answers": "six"}),
    "no answer": QuestionRow.model_validate({"context": CONTEXT, "question": "Who?", "answers": ""}),
}


def documents(path: Path) -> list[str]:
    return [row.text for row in read_rows(path, TextRow)]


def refusal(path: Path, schema: type[Row], columns: Mapping[str, str] | None = None) -> str:
    with pytest.raises(DataError) as error:
        read_rows(path, schema, columns)
    assert "\n" not in str(error.value)
    return error.value.sentence.replace(f"data: {path}: ", "")


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_written_rows_come_back(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    rows = [TranslationRow(source=source, target=target) for source, target in pairs]
    path = tmp_path_factory.mktemp("data") / "owner.jsonl"
    write_rows(path, rows)
    assert read_rows(path, TranslationRow) == rows


@pytest.mark.parametrize("name", ROWS)
def test_only_line_feeds_end_a_line_of_jsonl(tmp_path: Path, name: str) -> None:
    path, row = tmp_path / "owner.jsonl", ROWS[name]
    write_rows(path, [row, row])
    assert path.read_bytes().count(b"\n") == 2
    assert read_rows(path, type(row)) == [row, row]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as a Windows editor leaves it
    assert read_rows(path, type(row)) == [row, row]


def test_other_columns_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "owner.jsonl"
    path.write_text('\n{"id": 1, "text": "a"}\n  \n{"text": " \\n"}\n{"text": "b", "text2": 3}', encoding="utf-8")
    assert documents(path) == ["a", " \n", "b"]


def test_plain_text_is_divided_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("first\nstill first\n\n  \t\nsecond\u2028still second\n\n\n", encoding="utf-8")
    assert [text.strip() for text in documents(path)] == ["first\nstill first", "second\u2028still second"]


def test_folder_is_one_document_a_text_file_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, text in {"c.txt": "third", "b/z.txt": "second\n\nwhole", "a.txt": "first"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert documents(tmp_path) == ["first", "second\n\nwhole", "third"]


def test_tab_separated_columns_go_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text('\ufeffid\ten\tde\n1\tred "x"\trot\n\n2\t blue\tblau\r\n', encoding="utf-8")
    rows = read_rows(path, TranslationRow, {"source": "en", "target": "de"})
    assert [row.texts for row in rows] == [('red "x"', "rot"), (" blue", "blau")]


def test_columns_can_have_other_names_or_trade_theirs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"source": "a", "target": "b"}')
    (row,) = read_rows(path, TranslationRow, {"source": "target", "target": "source"})
    assert row.texts == ("b", "a")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_one_object_a_line_may_be_called_json(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    path.write_text('{"source": "a", "target": "b"}\n{"source": "c", "target": "d"}\n')
    assert [row.texts for row in read_rows(path, TranslationRow)] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("indent", [None, 1])
def test_squad_of_both_versions_is_read(tmp_path: Path, indent: int | None) -> None:
    six = {"text": "six", "answer_start": 18}
    qas = [
        {"id": "a", "question": "When?", "answers": [six, {"text": "at six", "answer_start": 15}]},
        {"id": "b", "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": [six]},
        {"id": "c", "question": "When?", "answers": [{"text": "six", "answer_start": 17}], "is_impossible": False},
    ]
    content = {"version": "2.0", "data": [{"title": "Tides", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(content, indent=indent))
    rows = read_rows(path, QuestionRow)
    assert [row.context for row in rows] == [CONTEXT] * 3
    assert [row.answers.text for row in rows] == [("six", "at six"), (), ("six",)]
    assert [row.answers.answer_start for row in rows] == [(18, 15), (), (18,)], "the last was off by one"


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"text": ["tide"], "answer_start": [4]}, (4,)),
        ({"text": ["tide"], "answer_start": [27]}, (27,)),
        ({"text": ["tide"], "answer_start": [0]}, (4,)),
        ({"text": ["tide"]}, (4,)),
        ("tide", (4,)),
        ([{"text": "tide", "answer_start": 27}], (27,)),
        ([{"text": "tide"}], (4,)),
        ({}, ()),
        ([], ()),
        (" ", ()),
    ],
)
def test_answer_stands_where_it_is_said_to_or_where_it_is_found(answers: object, found: tuple[int, ...]) -> None:
    row = QuestionRow.model_validate({"context": CONTEXT, "question": "What?", "answers": answers})
    assert row.answers.answer_start == found


def squad(qas: str, context: str = '"a b c"') -> str:
    return f'{{"data": [{{"paragraphs": [{{"context": {context}, "qas": [{qas}]}}]}}]}}'


def question(answers: str) -> str:
    return f'{{"context": "a b c", "question": "q", "answers": {answers}}}'


PLACE = "data.0.paragraphs.0.qas.0"
REFUSALS: list[tuple[str, str, type[Row], str]] = [
    ("x.jsonl", "", TextRow, "must hold at least one row with text, got none"),
    ("x.jsonl", "\n \n", TranslationRow, "must hold at least one row with source and target, got none"),
    ("x.txt", " \n\n\t\n", TextRow, "must hold at least one row with text, got none"),
    ("x.tsv", "source\ttarget\n", TranslationRow, "must hold at least one row with source and target, got none"),
    (
        "x.json",
        '{"data": []}',
        QuestionRow,
        "must hold at least one row with context and question and answers, got none",
    ),
    ("x.jsonl", '{"text": "ok"}\n\n{"text": "o', TextRow, 'line 3: must be a JSON object, got \'{"text": "o\' (Unterm'),
    ("x.jsonl", '{"text": "ok"}\nhello', TextRow, "line 2: must be a JSON object, got 'hello' ("),
    ("x.jsonl", '{"text": "ok"}\n["text"]', TextRow, "line 2: must be a JSON object, got \"['text']\""),
    ("x.jsonl", '"text"', TextRow, "line 1: must be a JSON object, got 'text'"),
    ("x.jsonl", '{"Text": "a", "id": 1}', TextRow, "line 1: must have a column 'text', got 'Text', 'id'"),
    ("x.jsonl", "{}", TextRow, "line 1: must have a column 'text', got none"),
    ("x.jsonl", '{"text": 5}', TextRow, "line 1: text: Input should be a valid string, got 5"),
    ("x.jsonl", '{"text": null}', TextRow, "line 1: text: Input should be a valid string, got None"),
    (
        "x.jsonl",
        '{"text": "fine"}\n{"text": "cut emoji \\ud83d"}',
        TextRow,
        "line 2: text: must be text that UTF-8 can hold, got half a surrogate pair",
    ),
    ("x.jsonl", "[" * 100_000, TextRow, "line 1: must be a JSON object, got '[[[["),
    ("x.jsonl", '{"text": "a", "id": ' + "1" * 5000 + "}", TextRow, "line 1: must be a JSON object, got '{"),
    ("x.jsonl", '{"source": "a", "target": " "}', TranslationRow, "line 1: target: must hold text, got ' '"),
    ("x.jsonl", '{"document": "", "summary": "a"}', SummaryRow, "line 1: document: must hold text, got ''"),
    ("x.tsv", "source\ttarget\na\tb\nc\n", TranslationRow, "line 3: must have 2 columns as line 1 has, got 1"),
    ("x.tsv", "source\ttarget\na\tb\tc\n", TranslationRow, "line 2: must have 2 columns as line 1 has, got 3"),
    ("x.tsv", "source\ttarget\n\tb\n", TranslationRow, "line 2: source: must hold text, got ''"),
    ("x.tsv", "source\ttarget\n\t\n", TranslationRow, "must hold at least one row with source and target, got none"),
    ("x.tsv", "a\ta\n1\t2\n", TranslationRow, "line 1: must name each column once, got 'a\\ta'"),
    ("x.tsv", "en\tde\n1\t2\n", TranslationRow, "line 2: must have a column 'source', got 'en', 'de'"),
    (
        "x.txt",
        "hello",
        TranslationRow,
        "must be a .jsonl, .csv, .tsv, .parquet, .arrow or .json file with source and target, ",
    ),
    ("x.json", "[1, 2]", QuestionRow, "item 1: must be a JSON object, got '1'"),
    ("x.json", "[\n{}]", QuestionRow, "item 1: must have a column 'context', got none"),
    ("x.json", "[{}", QuestionRow, "file: must be a JSON object, got '[{}'"),
    (
        "x.json",
        '{\n"rows": []}',
        QuestionRow,
        "must be SQuAD (data, paragraphs, qas) or one JSON object a line, got rows",
    ),
    (
        "x.json",
        '{"data": [{"paragraphs": [{"qas": []}]}]}',
        QuestionRow,
        "data.0.paragraphs.0.context: required but miss",
    ),
    ("x.json", squad('{"answers": []}'), QuestionRow, f"{PLACE}.question: required but missing"),
    ("x.json", squad('{"question": " ", "answers": []}'), QuestionRow, f"{PLACE}: question: must hold text, got ' '"),
    (
        "x.json",
        squad('{"question": "q", "answers": []}', "3"),
        QuestionRow,
        f"{PLACE}: context: Input should be a valid string, got 3",
    ),
    (
        "x.json",
        squad('{"question": "q", "answers": [{"text": "a", "answer_start": 0}], "is_impossible": true}'),
        QuestionRow,
        f"{PLACE}: answers: must be none where is_impossible, got some",
    ),
    (
        "x.json",
        squad('{"question": "q", "answer": [{"text": "a", "answer_start": 0}]}'),
        QuestionRow,
        f"{PLACE}: answers: required unless is_impossible is true, got none",
    ),
    (
        "x.csv",
        "context,question,answers,answer_start\na b,q,a,x\n",
        QuestionRow,
        "line 2: answer_start: must be a whole",
    ),
    ("x.csv", "context,question,answers,answer_start\na b,q,a,90\n", QuestionRow, "line 2: answers: answer_start must"),
    (
        "x.json",
        squad('{"question": "q", "answers": [{"text": "d", "answer_start": 0}]}'),
        QuestionRow,
        f"{PLACE}: answers: text must be part of the context, got 'd'",
    ),
    (
        "x.json",
        squad('{"question": "q", "answers": [{"answer_start": 0}]}'),
        QuestionRow,
        f"{PLACE}: answers.0: Input should be a valid string, got None",
    ),
    ("x.jsonl", question('{"text": ["x"]}'), QuestionRow, "line 1: answers: text must be part of the context, got 'x'"),
    (
        "x.jsonl",
        question('{"text": ["a"], "answer_start": [5]}'),
        QuestionRow,
        "line 1: answers: answer_start must lie in the context of 5 characters, got 5",
    ),
    (
        "x.jsonl",
        question('{"text": ["a"], "answer_start": [-1]}'),
        QuestionRow,
        "line 1: answers: answer_start must lie in the context of 5 characters, got -1",
    ),
    (
        "x.jsonl",
        question('{"text": ["a", "b"], "answer_start": [0]}'),
        QuestionRow,
        "line 1: answers: must have as many answer_start as text (2), got 1",
    ),
    (
        "x.jsonl",
        question('{"text": ["a"], "answer_start": ["0"]}'),
        QuestionRow,
        "line 1: answers.answer_start.0: Input should be a valid integer, got '0'",
    ),
    ("x.jsonl", question("7"), QuestionRow, "line 1: answers: "),
    (
        "x.jsonl",
        '{"context": "a", "question": "q"}',
        QuestionRow,
        "line 1: must have a column 'answers', got 'context',",
    ),
]


@pytest.mark.parametrize(("name", "content", "schema", "rule"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
def test_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, content: str, schema: type[Row], rule: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert refusal(path, schema).startswith(rule)


def test_the_first_bad_row_of_many_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": i if i in (1400, 1450) else "a ship"}) for i in range(1, 1501)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.jsonl: line 1400: text: .*, got 1400 \[AGFL-DATA-008\]$"):
        read_rows(tmp_path / "a.jsonl", TextRow)


def test_bad_file_in_a_folder_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "worse.txt").write_bytes(b"ok \xff")
    assert refusal(tmp_path, TextRow) == f"data: {tmp_path / 'worse.txt'}: must be UTF-8 text, got byte 0xff at 3"


def test_folder_holds_text_alone(tmp_path: Path) -> None:
    assert refusal(tmp_path, TextRow) == "must hold at least one row with text, got none"
    (tmp_path / "a.txt").write_text("text")
    rule = "must be a .jsonl, .csv, .tsv, .parquet, .arrow or .json file with document and summary, got '.txt'"
    assert refusal(tmp_path, SummaryRow) == f"data: {tmp_path / 'a.txt'}: {rule}"


def test_missing_and_unreadable_files_are_named_before_the_task_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^data: {tmp_path / 'none'}: .*AGFL-DATA-037"):
        check_readable(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match=rf"^data: {tmp_path / 'loop'}: "):
        check_readable(tmp_path / "loop")
    (tmp_path / "loop").unlink()
    with pytest.raises(DataError, match="AGFL-DATA-001"):
        check_readable(tmp_path)
    (tmp_path / "a.txt").touch()
    check_readable(tmp_path)


@pytest.mark.parametrize(
    ("name", "columns", "rule"),
    [
        ("x.jsonl", {"sorce": "en"}, "data: columns: unknown field 'sorce' (did you mean 'source'?)"),
        ("x.jsonl", {"source": "fr"}, "line 1: must have a column 'fr', got 'source', 'target'"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path: Path, name: str, columns: dict[str, str], rule: str) -> None:
    (tmp_path / name).write_text('{"source": "a", "target": "b"}')
    assert refusal(tmp_path / name, TranslationRow, columns) == rule


@pytest.mark.parametrize(("name", "content"), [("x.txt", "text"), ("x.json", squad(""))])
def test_columns_of_a_file_without_columns_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rule = f"data: columns: can name those of .jsonl, .csv, .tsv, .parquet, .arrow files only, got {tmp_path / name}"
    schema = TextRow if name == "x.txt" else QuestionRow
    assert refusal(tmp_path / name, schema, {next(iter(schema.model_fields)): "x"}) == rule


def test_mapping_of_columns_is_read() -> None:
    assert parse_columns("source=en,target=de") == {"source": "en", "target": "de"}
    assert parse_columns("source=a=b") == {"source": "a=b"}
    assert parse_columns("") == {}
    for text in ("source", "=en", "source=", "source=a,source=b"):
        with pytest.raises(
            ConfigError, match=rf"^--columns: must be NAME=COLUMN,\.\.\. .*, got '{text}'.*AGFL-CONFIG-012"
        ):
            parse_columns(text)
