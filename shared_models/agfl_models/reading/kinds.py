"""What a file is by its first bytes, so that one with another's suffix is refused by what it seems to be."""

from __future__ import annotations

import re

PARQUET, ARROW, STREAM, ENCRYPTED = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"PARE"
GZIP = b"\x1f\x8b"
_KINDS = (
    (PARQUET, "Parquet, which is called .parquet"),
    (ENCRYPTED, "encrypted Parquet"),
    (ARROW, "Arrow, which is called .arrow"),
    (STREAM, "an Arrow stream, which is called .arrow"),
    (b"FEA1", "the first version of Feather; write it again with pyarrow"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"PK\x03\x04", "a zip archive or an Office document"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"%PDF-", "PDF"),
    (b"{\\rtf", "RTF"),
    (GZIP, "gzip in gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"(\xb5/\xfd", "Zstandard"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "HDF5"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x04\x95", "a pickle, which could run code and is never read"),
    (b"\x80\x05\x95", "a pickle, which could run code and is never read"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a pointer of Git LFS to the file; fetch that with git lfs pull"),
)
_ALWAYS = (b"%PDF-", b"{\\rtf", b"version https://git-lfs")  # of ASCII throughout, and yet no text
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--[^>]*-->\s*)*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_START = 4096


def magic_of(content: bytes) -> tuple[str, bool] | None:
    """Return what begins so, and whether it is that even where all of it could be read as text."""
    for magic, kind in _KINDS:
        if content.startswith(magic):
            return kind, magic in _ALWAYS or not magic.isascii()
    return None


def is_html(text: str) -> bool:
    """Whether it is a web page: what a download leaves when it needed a login."""
    return _HTML.match(text[:_START]) is not None


def kind_of(start: bytes) -> str:
    """Return what a file seems to be that begins with `start` and should have been a table."""
    if known := magic_of(start):
        return known[0]
    text = start.decode("utf-8", errors="ignore").removeprefix("\ufeff")
    if not text:
        return "empty" if not start else "binary"
    if "\0" in text or len(text.encode()) < len(start) - 3:
        return "binary"
    if is_html(text):
        return "an HTML page"
    if text.lstrip()[:1] in ("{", "["):
        return "JSON"
    return "CSV" if any(mark in text.split("\n", 1)[0] for mark in ",;\t") else "text"
