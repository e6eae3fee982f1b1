"""An owner's files are read whole or named: nothing hidden, nothing half, nothing in letters that nobody wrote."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import DataError
from agfl_models.examples import TextRow, check_readable, read_data, read_rows
from agfl_models.reading import memory
from agfl_models.reading.encodings import decode
from agfl_models.reading.files import list_files, list_owners
from agfl_models.reading.survey import survey
from agfl_models.tasks.translation import TranslationRow

GERMAN = "Die Straße führt über den Fluss nach Köln, wo schöne Häuser stehen."
FRENCH = "L'été dernier, nous avons mangé des pâtes à la crème près de la forêt. Ça va, garçon."
SPANISH = "El niño comió piñas en la montaña. ¿Qué pasó después? Mañana será otro día."
SWEDISH = "Ålar äter ål på ön i Malmö."
PORTUGUESE = "Não, os limões e as maçãs são da irmã; a 1ª opção põe-se à mesa."
ICELANDIC = "Það er góð þörf á því að ræða ný mál."
ITALIAN = "La città è più bella, perché così si può; fuori ci sono 20 ºC."
DANISH = "Blåbær og rødgrød på ø."
WESTERN = (GERMAN, FRENCH, SPANISH, SWEDISH, PORTUGUESE, ICELANDIC, ITALIAN, DANISH)
RUSSIAN = "Сегодня хорошая погода, и мы идём гулять в лес."
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je hezký den."
POLISH = "Zażółć gęślą jaźń. W Szczebrzeszynie chrząszcz brzmi w trzcinie."
GREEK = "\u03a4\u03bf σπίτι είναι κοντά στη θάλασσα και έχει μεγάλο κήπο."
JAPANESE = "これは日本語の文章です。今日は天気がいい。"
CHINESE = "今天天气很好,我去公园散步。"


def texts(path: Path) -> list[str]:
    return [row.text.strip() for row in read_rows(path, TextRow)]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_rows(path, TextRow)
    with pytest.raises(DataError) as before:
        survey(path)
    assert str(before.value) == str(error.value), "a node says the same before it connects"
    assert "\n" not in str(error.value)
    return error.value.sentence


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


JSONL = '{"text": "sun"}\n{"text": "moon"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.JsonL", JSONL),
        ("a.ndjson", JSONL),
        ("a.json", JSONL),
        ("a.jsonlines", JSONL),
        ("a.json", '[\n {"text": "sun"},\n {"text": "moon"}]\n'),
        ("My notes, Zoë.v2.JSONL", JSONL),
        ("a.jsonl ", JSONL),
        ("a.TXT", "sun\n\nmoon\n"),
        ("a.text", "sun\r\n\r\nmoon\r\n"),
        ("a.csv", "text\nsun\nmoon\n"),
        ("a.CSV", 'id,text\r\n1,"sun"\r\n2,moon\r\n'),
        ("a.tsv", "text\tid\nsun\t1\nmoon\t2\n"),
        ("a.tab", "text\tid\nsun\t1\nmoon\t2\n"),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_suffix_says_the_format_however_it_is_written(tmp_path: Path, name: str, content: str, pack: bool) -> None:
    path = write(tmp_path / (name + ".GZ" * pack), gzip.compress(content.encode()) if pack else content)
    assert texts(path) == ["sun", "moon"]
    assert (survey(path).rows, survey(path).characters) == (2, len(content.replace("\r\n", "\n")))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.parquet", "must be Parquet as its name says, seems to be JSON"),
        ("a.PQ", "must be Parquet as its name says, seems to be JSON"),
        ("a.arrow", "must be Arrow as its name says, seems to be JSON"),
        ("a.feather", "must be Arrow as its name says, seems to be JSON"),
        ("a.zip", "unpack it first, got '.zip'"),
        ("a.tar.gz", "unpack it first, got '.tar'"),
        ("a.jsonl.bz2", "unpack it first, got '.bz2'"),
        ("a.docx", "must be a .jsonl, .csv, .tsv, .txt, .json, .parquet or .arrow file, or .gz of one, got '.docx'"),
        ("a.md", "got '.md'"),
        ("a.gz", "got no suffix before '.gz'"),
        ("a.jsonl.txt", "must be named for what it holds, got '.jsonl' and '.txt'"),
        ("a.csv.TXT.gz", "must be named for what it holds, got '.csv' and '.txt'"),
        ("a", "got no suffix"),
    ],
)
def test_what_is_not_read_is_named_alone_and_in_a_folder(tmp_path: Path, name: str, words: str) -> None:
    path = write(tmp_path / name, JSONL)
    for place in (path, tmp_path):
        line = refusal(place)
        assert line.startswith(f"data: {path}: ")
        assert line.endswith(words) or words in line
        if "as its name says" not in line:  # what is in a file is for its reading to say
            with pytest.raises(DataError):
                check_readable(place)


def test_hidden_files_and_all_in_hidden_folders_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / ".home" / "text"  # a hidden folder above is the owner's own choice
    write(root / "diary.txt", "final words")
    for name in (
        ".ipynb_checkpoints/diary-checkpoint.txt",
        ".git/a/b.txt",
        "sub/.cache/c.txt",
        "__MACOSX/sub/d.txt",
        "._diary.txt",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "~$diary.docx",
        "diary.txt~",
    ):
        write(root / name, b"\0\5\26 draft")
    assert texts(root) == ["final words"]
    assert survey(root).files == 1
    assert texts(write(tmp_path / ".own.txt", "named by its owner")) == ["named by its owner"]


def test_links_are_followed_once_and_broken_ones_named(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.txt", "far")
    root = tmp_path / "data"
    write(root / "a.txt", "near")
    (root / "sub").symlink_to(tmp_path / "elsewhere")
    (root / "again.txt").symlink_to(root / "a.txt")
    (root / "up").symlink_to(root)
    assert texts(root) == ["near", "far"]
    (root / "gone.txt").symlink_to("nowhere.txt")
    assert refusal(root) == f"data: {root / 'gone.txt'}: no such file or folder, a link to nowhere.txt"


def test_a_folder_may_be_called_like_a_file_and_a_pipe_is_none(tmp_path: Path) -> None:
    write(tmp_path / "all.jsonl" / "a.jsonl", JSONL)
    assert texts(tmp_path) == texts(tmp_path / "all.jsonl") == ["sun", "moon"]
    os.mkfifo(tmp_path / "pipe.txt")
    assert refusal(tmp_path).endswith("pipe.txt: must be a file or a folder, got a pipe, socket or device")


def test_folder_holds_several_formats(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", JSONL)
    write(tmp_path / "b.csv", "text;n\nrain;1\n")
    write(tmp_path / "c.txt.gz", gzip.compress(b"first\n\nstill first"))
    write(tmp_path / "README.txt", "about")
    rows, found = read_data(tmp_path, TextRow)
    assert [row.text for row in rows] == ["sun", "moon", "rain", "first\n\nstill first"]
    assert found.line == "3 files, 4 rows, columns text, n, 65 characters, utf-8"
    assert found.warnings == [f"not read: {tmp_path / 'README.txt'}"]


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "text")
    (tmp_path / "locked").mkdir()
    listdir = os.listdir

    def refusing(path: str | Path) -> list[str]:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)  # root may read everything
    assert refusal(tmp_path) == f"data: {tmp_path / 'locked'}: cannot be read: Permission denied"


@pytest.mark.parametrize("damage", ["cut", "changed", "no gzip", "rest"])
def test_damaged_gzip_is_never_half_read(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(JSONL.encode() * 100, compresslevel=0)
    content = {
        "cut": packed[:-20],
        "changed": packed[:100] + b"x" + packed[101:],
        "no gzip": JSONL.encode(),
        "rest": packed + b"rest",
    }[damage]
    assert "gzip" in refusal(write(tmp_path / "a.jsonl.gz", content))


def test_gzip_without_its_suffix_is_read_and_twice_is_named(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", gzip.compress(JSONL.encode()))) == ["sun", "moon"]
    twice = gzip.compress(gzip.compress(JSONL.encode()))
    assert refusal(write(tmp_path / "b.jsonl.gz", twice)).endswith("must be text, seems to be gzip in gzip")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv"])
def test_unicode_encodings_are_read_in_every_format(tmp_path: Path, name: str, encoding: str) -> None:
    value = f"{GERMAN} {RUSSIAN} {JAPANESE} 🌊"
    row = json.dumps({"text": value}, ensure_ascii=False)
    content = {".txt": value, ".csv": f'text\n"{value}"\n', ".tsv": f"text\n{value}\n"}.get(name[1:], row)
    marked = "\ufeff" if encoding.endswith(("le", "be")) else ""
    assert texts(write(tmp_path / name, (marked + content.replace("\n", "\r\n")).encode(encoding))) == [value]


def test_marks_of_joined_files_are_left_out_and_colors_are_text(tmp_path: Path) -> None:
    one = "sun\n\n".encode("utf-8-sig")
    assert texts(write(tmp_path / "a.txt", one * 2)) == ["sun", "sun"]
    assert texts(write(tmp_path / "a.txt", "\x1b[31mred\x1b(B\x1b[m")) == ["\x1b[31mred\x1b(B\x1b[m"]


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Z"]), min_size=1))
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_known_by_its_zeros(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding), "x") == (text, encoding)


@pytest.mark.parametrize("text", [*WESTERN, "Größe", "caf\xe9", f"{GERMAN} {FRENCH}"])
def test_western_text_is_read_as_such_and_said(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.txt", text.encode("latin-1"))
    assert texts(path) == [text]
    assert "read as latin-1, which it seems to be" in survey(path).warnings[0]
    quoted = f"„{text}“ \u2013 5 €"
    assert texts(write(path, quoted.encode("cp1252"))) == [quoted]
    assert survey(path).encodings.keys() == {"cp1252"}
    assert texts(write(path, f"{text} " * 20000 + "end")) == [f"{text} " * 20000 + "end"]


@pytest.mark.parametrize(
    ("text", "encoding", "names"),
    [
        (RUSSIAN, "cp1251", ["cp1251"]),
        (RUSSIAN, "koi8_r", ["koi8_r"]),
        (CZECH, "cp1250", ["cp1250"]),
        (POLISH, "cp1250", ["cp1250"]),
        (GREEK, "cp1253", ["cp1253", "iso8859_7"]),
        (JAPANESE, "shift_jis", ["shift_jis"]),
        (JAPANESE, "euc_jp", ["euc_jp"]),
        (CHINESE, "gb18030", ["gb18030"]),
        (JAPANESE, "iso2022_jp", ["iso2022_jp"]),
        (GERMAN, "mac_roman", ["mac_roman"]),
        (FRENCH, "cp850", ["cp850", "cp437"]),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path: Path, text: str, encoding: str, names: list[str]) -> None:
    for name, content in {"a.txt": text, "b.csv": f"text\n{text}\n", "c.jsonl": f'{{"text": "{text}"}}\n'}.items():
        line = refusal(write(tmp_path / name, content.encode(encoding)))
        assert any(f"seems to be {known}; save it as UTF-8" in line for known in names), line


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Az erdőben sok őz él, és a nő énekel", "cp1250"),
        ("Šodien mēs ejam uz mežu. Rīgā ir skaisti", "cp1257"),
        ("Keli žmonės gyvena čia", "cp1257"),
        ("Copiii merg la şcoală", "iso8859_2"),
        ("Güneş doğdu, bahçe yeşil, çünkü yağmur geçti", "cp1254"),
        ("Kuća je čista i nova", "cp1250"),
        ("Dzień jest jasny, kość", "cp1250"),
        ("Mae'r dŵr yn oer, a'r tŷ yn fawr", "iso8859_14"),
        ("Une œuvre, des œufs", "iso8859_15"),
        ("La città è più bella", "cp850"),
        ("Eesti keel, õhtu ja öö", "cp1257"),
    ],
)
def test_what_windows_1252_would_spoil_is_not_read_as_that(tmp_path: Path, text: str, encoding: str) -> None:
    assert "must be UTF-8 text" in refusal(write(tmp_path / "a.txt", text.encode(encoding)))


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(1, 127)),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
        GERMAN.encode() + b" \xe4",
        "日本".encode()[:-1],
        b"ok \xff",
        b"sun\0moon",
        b"\xff\xfea",
        b"PAR1\x15\x04\0\0PAR1",
        b"PARE\x15\x04\0\0PARE",
        b"\xff\xff\xff\xff\x10\0\0\0",
        b"\x80\x04\x95\x0b\0\0\0",
        b"ARROW1\0\0",
        b"PK\x03\x04\x14\0",
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
        b"SQLite format 3\0",
        zlib.compress(JSONL.encode() * 50),
        bytes(range(256)),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_binaries_and_damaged_text_are_no_text(tmp_path: Path, name: str, content: bytes) -> None:
    assert "must be" in refusal(write(tmp_path / name, content))


PAGE = "<html><head><title>Log in</title></head><body>Please log in.</body></html>"


@pytest.mark.parametrize(
    "content",
    [
        PAGE,
        f"\n<!DOCTYPE html>\n{PAGE}",
        f"<!-- saved from url=(0014)about:internet -->\n{PAGE}",
        f'<?xml version="1.0"?>\n<!DOCTYPE HTML PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">{PAGE}',
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.json", "a.tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_web_page_is_no_text(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    line = refusal(write(tmp_path / name, content.encode(encoding)))
    assert line.endswith("must be text, seems to be an HTML page; save what it says as plain text")
    kept = f'{{"text": {json.dumps(PAGE)}}}\n'
    assert texts(write(tmp_path / "b.jsonl", kept)) == [PAGE], "a column may hold one"


def test_what_a_gzip_file_holds_must_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"word " * (4 << 20)))
    assert len(texts(path)) == 1
    monkeypatch.setattr(memory, "free_memory", lambda: 64 << 20)
    rule = "must be unpacked in half of the memory that is free, got more than 16 MiB"
    assert refusal(path) == f"data: {path}: {rule}"
    path = write(tmp_path / "b.txt", b"word " * (4 << 20))
    rule = "must fit into half of the memory that is free (32 MiB), got at least 40 MiB; give a part of it"
    assert refusal(path) == f"data: {path}: {rule}"


def pairs(path: Path) -> list[tuple[str, ...]]:
    return [row.texts for row in read_rows(path, TranslationRow)]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", 'source,target\n"a, b","say ""x"""\n', [("a, b", 'say "x"')]),
        ("a.csv", 'source;target\r\n"a; b";"1,5"\r\n', [("a; b", "1,5")]),
        ("a.csv", "sep=;\nsource;target\na,b;c\n", [("a,b", "c")]),
        ("a.csv", "source|target\na|b\n", [("a", "b")]),
        ("a.csv", "source\ttarget\na\tb\n", [("a", "b")]),
        ("a.csv", 'source,target\r\n"two\r\nlines\rand\nmore",b\r\n', [("two\nlines\nand\nmore", "b")]),
        ("a.csv", "source,target\ra,b\rc,d", [("a", "b"), ("c", "d")]),
        ("a.csv", ",source,target,,\n0,a,b,,\n,,,,\n\n1,c,d,,,,\n", [("a", "b"), ("c", "d")]),
        ("a.csv", " source , target \na, b\n", [("a", " b")]),
        ("a.csv", 'source, target, "id"\n"a, b", "c", 1\n', [("a, b", "c")]),
        ("a.tsv", 'source\ttarget\n"a\tb"\t"say ""x"""\n', [("a\tb", 'say "x"')]),
        ("a.tsv", 'source\ttarget\na\t"b\nc\td"\ne\tf\n', [("a", '"b'), ("c", 'd"'), ("e", "f")]),
        ("a.csv", "\n\nsource,target\na,b\n", [("a", "b")]),
        ("a.json", '{"source": "a", "target": "b", "data": "2020"}', [("a", "b")]),
        ("a.tsv", 'source\ttarget\n"Hi," he said\tb\n"c\td\n', [('"Hi," he said', "b"), ('"c', "d")]),
    ],
)
def test_columns_as_programs_write_them(tmp_path: Path, name: str, content: str, found: list[tuple[str, ...]]) -> None:
    assert pairs(write(tmp_path / name, content)) == found


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ('source,target\na,"b\nc,d\n', "line 2: must have quotes in pairs"),
        ('source,target\na,b\n"c"d,e\n', "line 3: must have quotes in pairs"),
        ('source,target\n"a\nb",c\nd\n', "line 4: must have 2 columns as line 1 has, got 1"),
        ("source,target\na,b,c\n", "line 2: must have 2 columns as line 1 has, got 3"),
        ("source,source\na,b\n", "line 1: must name each column once"),
        ("source,target\n", "must hold at least one row"),
        ("", "must hold at least one row"),
    ],
)
def test_broken_columns_are_named_by_line(tmp_path: Path, content: str, rule: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(DataError) as error:
        read_rows(path, TranslationRow)
    assert str(error.value).startswith(f"data: {path}: {rule}")


def test_a_cell_holds_a_whole_book(tmp_path: Path) -> None:
    book = "word " * 100_000
    assert pairs(write(tmp_path / "a.csv", f'source,target\n"{book}",b\n')) == [(book, "b")]


def test_few_rows_are_told(tmp_path: Path) -> None:
    lines = [JSONL.split("\n")[0]] * 4
    assert survey(write(tmp_path / "a.jsonl", "\n".join(lines))).warnings == []
    for number in (1, 2, 3):
        (line,) = survey(write(tmp_path / "a.jsonl", "\n".join(lines[:number]))).warnings
        assert line.startswith(f"{tmp_path / 'a.jsonl'}: only {number} row{'s' * (number > 1)}: too few to learn from")


def test_owners_are_files_and_folders_by_their_names(tmp_path: Path) -> None:
    for name in ("Zoe\u0308 Müller.JSONL", "al.jsonl.gz", "bob/notes.txt", "._al.jsonl", ".ipynb_checkpoints/x.txt"):
        write(tmp_path / name, JSONL)
    owners, left_out = list_owners(tmp_path)
    assert list(owners) == ["Zoë Müller", "al", "bob"]
    assert left_out == ()
    write(tmp_path / "README.md", "about")
    assert list_owners(tmp_path)[1] == (tmp_path / "README.md",)
    write(tmp_path / "al.txt", "again")
    with pytest.raises(DataError, match=r"^data\.path: .*: .*got .*al\.jsonl\.gz and .*al\.txt.*AGFL-DATA-035"):
        list_owners(tmp_path)


def test_order_is_that_of_the_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b.txt", "C.txt"):
        write(tmp_path / name, name)
    assert [str(file.path.relative_to(tmp_path)) for file in list_files(tmp_path).files] == [
        "C.txt",
        "a/b.txt",
        "a/z.txt",
        "b.txt",
    ]
