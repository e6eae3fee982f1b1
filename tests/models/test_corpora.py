"""Documents come back as they were written; what cannot be read is one line that names file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.corpora import read_documents, shakespeare_roles, write_documents
from agfl_models.errors import DataError

# A name of this rule can be a file's name and a node's; written here again on purpose.
NAME_RULE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
DOCUMENT = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() != "")
SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\r\ni\nj\x00k\ufeffl"


@pytest.fixture(scope="module")
def roles() -> dict[str, list[str]]:
    return shakespeare_roles()


def test_shakespeare_has_608_roles_with_speeches(roles: dict[str, list[str]]) -> None:
    assert len(roles) == 608
    assert all(speeches and all(speech.strip() for speech in speeches) for speeches in roles.values())
    assert any("To be, or not to be" in speech for speech in roles["hamlet-HAM"])
    folded = {name.casefold() for name in roles}
    assert len(folded) == 608, "file systems may not tell upper from lower case"
    assert all(re.fullmatch(NAME_RULE, name) for name in roles)


@given(st.lists(DOCUMENT, min_size=1, max_size=5))
def test_written_documents_come_back(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> None:
    path = tmp_path_factory.mktemp("data") / "owner.jsonl"
    write_documents(path, documents)
    assert read_documents(path) == documents


def test_only_line_feeds_end_a_line_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "owner.jsonl"
    write_documents(path, [SEPARATORS, "second"])
    assert path.read_bytes().count(b"\n") == 2
    assert read_documents(path) == [SEPARATORS, "second"]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as a Windows editor leaves it
    assert read_documents(path) == [SEPARATORS, "second"]


def test_other_columns_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "owner.jsonl"
    path.write_text('\n{"id": 1, "text": "a"}\n  \n{"text": " \\n"}\n{"text": "b", "text2": 3}', encoding="utf-8")
    assert read_documents(path) == ["a", "b"]


def test_plain_text_is_divided_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("first\nstill first\n\n  \t\nsecond\u2028still second\n\n\n", encoding="utf-8")
    assert [text.strip() for text in read_documents(path)] == ["first\nstill first", "second\u2028still second"]


def test_folder_is_one_document_a_text_file_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, text in {"c.txt": "third", "b/z.txt": "second\n\nwhole", "a.txt": "first", "x.md": "not text"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_documents(tmp_path) == ["first", "second\n\nwhole", "third"]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("x.jsonl", b"", "must hold at least one document with text, got none"),
        ("x.jsonl", b'{"text": " "}\n\n', "must hold at least one document with text, got none"),
        ("x.txt", b" \n\n\t\n", "must hold at least one document with text, got none"),
        ("x.jsonl", b'{"text": "ok"}\n\n{"text": "o', r"line 3: must be a JSON object, got '\{\"text\": \"o' \(Unterm"),
        ("x.jsonl", b'{"text": "ok"}\nhello', r"line 2: must be a JSON object, got 'hello' \("),
        ("x.jsonl", b'{"text": "ok"}\n["text"]', "line 2: must have a column 'text' that holds text, got list"),
        ("x.jsonl", b'"text"', "line 1: must have a column 'text' that holds text, got str"),
        ("x.jsonl", b'{"Text": "a", "id": 1}', r"line 1: must have a column 'text' .*, got \['Text', 'id'\]"),
        ("x.jsonl", b'{"text": 5}', r"line 1: must have a column 'text' that holds text, got \['text'\]"),
        ("x.jsonl", b'{"text": null}', r"line 1: must have a column 'text' that holds text, got \['text'\]"),
        ("x.jsonl", '{"text": "é"}'.encode("latin-1"), "must be UTF-8 text, got byte 0xe9 at 10"),
        ("x.txt", "\ufeffhi".encode("utf-16"), "must be UTF-8 text, got byte 0xff at 0"),
    ],
)
def test_file_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^data: {path}: {rule}") as error:
        read_documents(path)
    assert "\n" not in str(error.value)


def test_bad_file_in_a_folder_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "worse.txt").write_bytes(b"ok \xff")
    with pytest.raises(DataError, match=rf"^data: {tmp_path / 'worse.txt'}: must be UTF-8 text, got byte 0xff at 3$"):
        read_documents(tmp_path)


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^data: {tmp_path / 'none'}: no such file or folder$"):
        read_documents(tmp_path / "none")
    with pytest.raises(DataError, match=rf"^data: {tmp_path}: must hold at least one document"):
        read_documents(tmp_path)


def test_text_that_utf8_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "cut emoji \\ud83d"}\n')
    with pytest.raises(DataError, match=r"line 2"):
        read_documents(path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": "a", "id": ' + "1" * 5000 + "}"], ids=["deep", "long"])
def test_json_that_python_cannot_read_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=r"line 1"):
        read_documents(path)
