"""Text from anywhere as a page may show it: characters that move, hide or turn around others are made visible."""

from __future__ import annotations

import unicodedata

_MARK = "\N{REPLACEMENT CHARACTER}"
# Marks, embeddings, overrides and isolates of the bidirectional algorithm (Unicode Standard Annex 9, 2.1 to 2.6).
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MAX_MARKS = 8  # accents on one letter: hundreds of them cover the lines above


def plain(text: str, max_length: int | None = None) -> str:
    """Return the text without its controls, at most so many characters of it; HTML in it is still to be escaped."""
    cut = text if max_length is None or len(text) <= max_length else text[:max_length] + "\N{HORIZONTAL ELLIPSIS}"
    shown, marks = [], 0
    for character in cut.replace("\r\n", "\n"):
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > _MAX_MARKS:
            continue
        is_hidden = category in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI
        shown.append(_MARK if is_hidden and character not in "\n\t" else character)
    return "".join(shown)
