"""Bytes become text: UTF-8, UTF-16 and UTF-32 as they say of themselves, Windows-1252 where it can be nothing else.

Whatever else it seems to be is refused by name: another encoding's text would be read without an error, and wrong.
"""

from __future__ import annotations

import codecs
import re
from itertools import combinations_with_replacement
from typing import NamedTuple

from agfl_models.errors import DataError
from agfl_models.reading.kinds import is_html, magic_of

# Longer ones first: UTF-32's mark begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Letters beyond ASCII of the languages that Windows-1252 was made for: those of one, or of two of the first ones. Text
# in another 8-bit encoding is full of combinations that none of them has: Czech reads "pøíliš žluouèký", Russian
# "äîì", Turkish "güneþ doðdu", Latvian "meþu Rîgâ", Croatian "Kuæa je èista".
_TOGETHER = (
    "àâçéèêëîïôœùûü",
    "äöüß",
    "áéíóúüñºª",
    "áâãàçéêíóôõúºª",
    "àèéìíîòóùú",
    "åäöé",
    "áéëïíóöüúè",
    "àçèéíïòóúü·",
)
_ALONE = ("æøåéäö", "áðéíóúýþæö")
_LETTERS = (
    *(frozenset(one + other) for one, other in combinations_with_replacement(_TOGETHER, 2)),
    *map(frozenset, _ALONE),
)
# Places where these languages never have these letters, but others have the letter with the same byte.
_NEVER = re.compile(
    r"õ(?!e)|ñ(?![aeiouáéíóúü])|ã(?![oesi]|\b)|þ\b|\bð"  # õ ñ ã þ ð are ő ń ă ş Š there
    r"|(?<![\dn.])(?<!\d )[ºª¹²³¼½¾](?=[^\W\d_])"  # ½uvre, ºcoală
    r"|[^\W\d_][\u2022\u2030\u2020\u2021](?!\w)",  # And•
    re.IGNORECASE,
)
_PUNCTUATION = frozenset(
    "\u20ac\u201a\u201e\u2026\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u2122\u2039\u203a\xa0¡¿«»§©®°±²³µ·\xb4¼½¾\xd7÷£¥¢"
)
_SAMPLE, _FEW = 1 << 16, 3  # bytes
_CONTROLS = bytes([*range(0x01, 0x09), *range(0x0E, 0x1B), *range(0x1C, 0x20)])
_GUESSED = (
    *("cp1250", "iso8859_2", "cp1251", "koi8_r", "iso8859_5", "cp866", "cp1253", "iso8859_7"),
    *("cp1254", "cp1255", "cp1256", "cp1257", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "mac_roman", "cp850"),
)


class Decoded(NamedTuple):
    """A text, its line ends made "\\n" and its byte order mark left out, and the encoding that it was in."""

    text: str
    encoding: str


def decode(content: bytes, where: str) -> Decoded:
    """Return the text of a whole file; `where` begins the message of an error.

    Raises:
        DataError: it is no text, a web page, or in another encoding, which the message names.
    """
    decoded = _decoded(content, where)
    if is_html(decoded.text):
        raise DataError(
            "AGFL-DATA-024", f"{where}: must be text, seems to be an HTML page; save what it says as plain text"
        )
    return decoded


def _decoded(content: bytes, where: str) -> Decoded:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return Decoded(_plain(_strict(content[len(mark) :], encoding, where)), encoding.removesuffix("-sig"))
    has_nul = b"\0" in content
    if (known := magic_of(content)) and (has_nul or known[1] or not _is_utf8(content)):
        raise DataError("AGFL-DATA-025", f"{where}: must be text, seems to be {known[0]}")
    if has_nul:
        unmarked = _utf16_without_mark(content)
        if unmarked is None:
            raise DataError(
                "AGFL-DATA-026",
                f"{where}: must be text, got a NUL byte at {content.index(0)}: it seems to be binary, or "
                "UTF-16 that lacks its mark",
            )
        return Decoded(_plain(_strict(content, unmarked, where)), unmarked)
    if b"\x1b$" in content:
        raise DataError("AGFL-DATA-027", f"{where}: must be UTF-8 text, seems to be iso2022_jp; save it as UTF-8")
    sample = content[:_SAMPLE]
    if (len(sample) - len(sample.translate(None, _CONTROLS))) * 20 > len(sample):
        raise DataError("AGFL-DATA-028", f"{where}: must be text, got control characters; it seems to be binary")
    try:
        return Decoded(_plain(content.decode("utf-8")), "utf-8")
    except UnicodeDecodeError as error:
        got = f"got byte {content[error.start]:#04x} at {error.start}"
    if not _is_broken_utf8(content):
        western = _western(content)
        if western is not None:
            return Decoded(_plain(western), "cp1252" if re.search(rb"[\x80-\x9f]", content) else "latin-1")
        guess = _guess(content)
        if guess is not None:
            raise DataError(
                "AGFL-DATA-029", f"{where}: must be UTF-8 text, {got}, seems to be {guess}; save it as UTF-8"
            )
    raise DataError("AGFL-DATA-030", f"{where}: must be UTF-8 text, {got}")


def _plain(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removeprefix("\ufeff").replace("\n\ufeff", "\n")  # also where files were joined


def _strict(content: bytes, encoding: str, where: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        got = f"got byte {error.object[error.start]:#04x} at {error.start}"
        raise DataError(
            "AGFL-DATA-031", f"{where}: must be {encoding.upper()} text, as its beginning says, {got}"
        ) from None


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _utf16_without_mark(content: bytes) -> str | None:
    """Return the encoding where NUL bytes are the upper halves of ASCII characters, of a third of all or more."""
    if len(content) % 2:
        return None
    even, odd = content[::2].count(0), content[1::2].count(0)
    encoding, upper, lower = ("utf-16-le", odd, even) if odd > even else ("utf-16-be", even, odd)
    if lower or upper * 6 < len(content):
        return None
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return None
    return encoding if not re.search(r"[\x00-\x08\x0e-\x1f]", text) else None


def _is_broken_utf8(content: bytes) -> bool:
    """Whether there is more UTF-8 beyond ASCII in it than bytes that are none: then it is UTF-8, damaged or mixed."""
    text = content.decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    good = sum(len(run) for run in re.findall(r"[^\x00-\x7f\ufffd]+", text))
    return good >= bad


def _western(content: bytes) -> str | None:
    """Return the text in Windows-1252 if it is plausible there: letters of one or two languages, in their places."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    letters = {c.lower() for c in set(text) if c > "\x7f"} - _PUNCTUATION
    if (
        not any(letters <= known for known in _LETTERS)
        or _NEVER.search(text)
        or re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text)
    ):
        return None
    # A word of such letters alone, or punctuation inside one, is what other encodings look like.
    inside = re.search(r"[^\W\d_][\u201a\u201e\u2026\u2030\u2020-\u2022\u2039\u203a¢£¥§©±²³µ¼½¾¿\xd7÷][^\W\d_]", text)
    foreign = re.search(r"(?<!\w)[^\x00-\x7f\W\d_]{3,}(?!\w)", text)
    return None if inside or foreign else text


def _guess(content: bytes) -> str | None:
    """Return what another encoding than UTF-8 seems to be; None of so little that nobody could say."""
    if len(re.findall(rb"[\x80-\xff]", content[:_SAMPLE])) < _FEW:
        return None
    from charset_normalizer import from_bytes  # where it is used: it takes 0.1 s

    lines = [line for line in content[: 1 << 24].split(b"\n") if not line.isascii()]
    best = from_bytes(b"\n".join(lines)[:_SAMPLE], cp_isolation=list(_GUESSED)).best()
    return None if best is None else str(best.encoding)
