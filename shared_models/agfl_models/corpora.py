"""Text corpora: the one that ships with the package, and any owner's own file or folder."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from agfl_models.errors import DataError

TEXT_SUFFIX, JSONL_SUFFIX = ".txt", ".jsonl"


def shakespeare_roles() -> dict[str, list[str]]:
    """Return the speeches of 608 speaking roles, by role name ("hamlet-HAM"); attribution in NOTICE."""
    packed = files("agfl_models").joinpath("data/shakespeare_roles.jsonl.gz").read_bytes()
    rows = (json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines())
    return {_file_name(row["client"]): row["speeches"] for row in rows}


def read_documents(path: Path) -> list[str]:
    """Return an owner's documents.

    A .jsonl file holds one document a line, in the column `text`; a folder holds one document a .txt file; any other
    file is plain text whose documents stand between blank lines.

    Raises:
        DataError: names the file, the line, the rule and what was found.
    """
    if not path.exists():
        raise DataError(f"data: {path}: no such file or folder")
    if path.is_dir():
        documents = [_read(file) for file in sorted(path.rglob("*" + TEXT_SUFFIX))]
    elif path.suffix == JSONL_SUFFIX:
        documents = [
            _text_column(path, number, line) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip()
        ]
    else:
        documents = re.split(r"\n\s*\n", _read(path))
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise DataError(f"data: {path}: must hold at least one document with text, got none")
    return documents


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Write documents as a .jsonl file that `read_documents` reads."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    path.write_text("".join(lines), encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: {path}: must be UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    except OSError as error:
        raise DataError(f"data: {path}: cannot be read: {error.strerror}") from None


def _text_column(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {path}: line {number}: must be a JSON object, got {line[:40]!r} ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"data: {path}: line {number}: must have a column 'text' that holds text, got {got}")
    text = str(row["text"])
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"data: {path}: line {number}: must be text that UTF-8 can hold, got half a surrogate pair")
    return text


def _file_name(client: str) -> str:
    """ "hamlet/LADY MACBETH" -> "hamlet-LADY-MACBETH": owner names are file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", client).strip("-.")
