"""An answer stands where its offset says, however that was counted; one that is moved is told, one far off refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import DataError
from agfl_models.examples import read_data, write_rows
from agfl_models.tasks.answers import FAR, locate
from agfl_models.tasks.question_answering import QuestionRow

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="#\r"), max_size=60)
COUNTED: dict[str, Callable[[str], int]] = {
    "characters": len,
    "bytes": lambda text: len(text.encode()),
    "UTF-16 units": lambda text: len(text.encode("utf-16-le")) // 2,
    "Windows line ends": lambda text: len(text.replace("\n", "\r\n")),
}


@given(before=TEXT, after=TEXT)
@pytest.mark.parametrize("way", COUNTED)
def test_every_way_to_count_finds_the_answer(way: str, before: str, after: str) -> None:
    assert locate(f"{before}#an answer#{after}", "#an answer#", COUNTED[way](before)) == len(before)


def test_what_several_programs_count_is_the_second_one_and_not_the_first() -> None:
    context = "Müller 🙂 met Müller in Köln; Müller left."
    place = context.rindex("Müller")
    for count in COUNTED.values():
        assert locate(context, "Müller", count(context[:place])) == place


@pytest.mark.parametrize("off", [-5, -1, 1, 2, 5])
def test_the_nearest_place_is_taken(off: int) -> None:
    context = "sun " * 3 + "." * 40 + " sun " + "." * 40 + " sun"
    place = context.index(" sun ", 30) + 1
    assert locate(context, "sun", place + off) == place
    assert locate(context, "sun", None) == 0


def test_what_is_far_is_refused_with_both_places() -> None:
    context = "sun" + "." * 200
    assert locate(context, "sun", FAR) == 0
    rule = rf"^answer_start must be where the text stands, at most {FAR} characters off, got 100 for 'sun' at 0$"
    with pytest.raises(ValueError, match=rule):
        locate(context, "sun", 100)


def write(path: Path, *answers: object) -> Path:
    rows = [{"context": "The sün rose; the sun set.", "question": "What?", "answers": one} for one in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_moved_answers_are_counted_and_told(tmp_path: Path) -> None:
    right, in_bytes, off = 18, 19, 16
    answers = [{"text": ["sun"], "answer_start": [start]} for start in (right, in_bytes, off)]
    rows, found = read_data(write(tmp_path / "a.jsonl", *answers, "sun", [], ""), QuestionRow)
    assert [row.answers.answer_start for row in rows] == [(18,)] * 4 + [()] * 2
    (line,) = found.doubts
    assert line.startswith(f"{tmp_path / 'a.jsonl'}: 2 of 6 rows: answer_start held no answer, as characters count")


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ("", ()),
        ([], ()),
        ([""], ()),
        ({}, ()),
        ({"text": [], "answer_start": []}, ()),
        ({"text": "", "answer_start": -1}, ()),
        ({"text": [""], "answer_start": [-1]}, ()),
        ([{"text": "", "answer_start": -1}], ()),
        (["sun"], ("sun",)),
        (["sun", "the sun"], ("sun", "the sun")),
        ({"text": "sun", "answer_start": 18}, ("sun",)),
        ([{"text": "sun", "answer_start": 18}, {"text": "the sun"}], ("sun", "the sun")),
    ],
)
def test_each_form_of_answers_is_read(tmp_path: Path, answers: object, texts: tuple[str, ...]) -> None:
    ((row,), found) = read_data(write(tmp_path / "a.jsonl", answers), QuestionRow)
    assert row.answers.text == texts
    assert found.doubts == []


@pytest.mark.parametrize("answers", [None, 7, True, ["sun", 3], [["sun"]], {"text": {"a": 1}}, {"answer_start": [4]}])
def test_other_forms_are_refused_in_words_of_a_data_owner(tmp_path: Path, answers: object) -> None:
    with pytest.raises(DataError) as error:
        read_data(write(tmp_path / "a.jsonl", answers), QuestionRow)
    assert "line 1: answers: must be a text, a list of texts, or text and answer_start as in SQuAD" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'context,question,answers,answer_start\n"Rain. Rain.",?,Rain,6\n"Rain.",?,,-1\n"Rain.",?,Rain,\n'),
        ("a.csv", 'context,question,answers,answer_start\n"Rain. Rain.",?,Rain,[6]\n"Rain.",?,,\n"Rain.",?,Rain,0.0\n'),
        ("a.jsonl", '{"context": "Rain. Rain.", "question": "?", "answers": ["Rain"], "answer_start": [6]}\n'),
        ("a.jsonl", '{"context": "Rain. Rain.", "question": "?", "answers": {"text": ["Rain"]}, "answer_start": 6}\n'),
    ],
)
def test_where_an_answer_starts_may_be_a_column_of_its_own(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rows, found = read_data(tmp_path / name, QuestionRow)
    assert [row.answers.answer_start for row in rows] == [(6,), (), (0,)][: len(rows)]
    assert "moved" not in " ".join(found.doubts)
    write_rows(tmp_path / "again.jsonl", rows)
    assert [row.answers for row in read_data(tmp_path / "again.jsonl", QuestionRow)[0]] == [row.answers for row in rows]
