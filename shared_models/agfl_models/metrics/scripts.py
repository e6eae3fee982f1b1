"""Words of every script: what the published metrics cut up were English texts, and others have no word for them at all.

An example is scored as published unless its reference is mostly in a script that the published rule cannot read. That
depends on the reference alone, so nothing that a model writes changes the rule it is judged by.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Kind = Literal["word", "character", "symbol", "joined", "space"]

# Written without spaces, so that only a character is sure to be a unit: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3041, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F)),
    (0x20000, 0x3FFFF),
)
assert all(a[1] < b[0] for a, b in pairwise(_UNSPACED))
_JOINERS = "\u200c\u200d"  # of Persian and Indic words


def is_unspaced(text: str) -> bool:
    """Whether most of the letters and digits are of a script without spaces between words."""
    if text.isascii():
        return False
    kinds = [_kind(character) for character in text]
    return kinds.count("character") > kinds.count("word")


def is_beyond_ascii(text: str) -> bool:
    """Whether most of the letters, digits and symbols are none of ASCII's."""
    if text.isascii():
        return False
    others = [c for c in text if not c.isascii() and _kind(c) in ("word", "character", "symbol")]
    return len(others) > sum(c.isascii() and c.isalnum() for c in text)


def unicode_words(text: str) -> list[str]:
    """Return the words in lower case; of scripts without spaces, and of symbols, the characters with their marks."""
    words: list[str] = []
    before: Kind = "space"
    for character in unicodedata.normalize("NFC", text).lower():
        kind = _kind(character)
        if kind == "joined" and before == "space":
            kind = "word"
        if kind == "joined" or (kind == before == "word"):
            words[-1] += character
        elif kind != "space":
            words.append(character)
        before = before if kind == "joined" else kind
    return words


def spaced_out(text: str) -> str:
    """Return the text with spaces around each character of a script without spaces; its marks stay with it."""
    parts: list[str] = []
    for character in text:
        kind = _kind(character)
        if kind == "character":
            parts.append(f" {character} ")
        elif kind == "joined" and parts and parts[-1].endswith(" "):
            parts[-1] = f"{parts[-1][:-1]}{character} "
        else:
            parts.append(character)
    return "".join(parts)


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> Kind:
    category, code = unicodedata.category(character)[0], ord(character)
    if category == "M" or character in _JOINERS:
        return "joined"
    if any(first <= code <= last for first, last in _UNSPACED):
        return "character" if category in "LN" else "space"
    if category in "LN":
        return "word"
    return "symbol" if category == "S" and code > 0x7F else "space"
