"""Pairs of (hypothesis, reference) on which a metric must agree with the library that defines it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hypothesis import strategies as st

Pair = tuple[str, str]
# What tokenizers trip over: entities, numbers, articles, hyphens at line ends, characters whose lower case is longer.
_WORDS = [
    "the",
    "The",
    "a",
    "an",
    "sea",
    "ship",
    "Straße",
    "größe",
    "3.14",
    "1,000",
    "9-5",
    "it's",
    "e.g.",
    "İ",
    "中文",
]
_WORDS += [
    "&quot;x&amp;",
    "<skipped>",
    "co-\nop",
    "!?",
    "...",
    "—",
    "_x_",
    "«no»",
    "\u00a0",
    "e\u0301",
    "🙂",
    "x2",
    "¿",
]
_SEPARATORS = st.sampled_from([" ", " ", " ", "  ", ", ", ". ", "-", "\n", "\t", ""])
_WORDY = st.lists(st.tuples(st.sampled_from(_WORDS), _SEPARATORS), max_size=14).map(
    lambda parts: "".join(word + separator for word, separator in parts)
)
TEXTS = st.one_of(_WORDY, _WORDY, st.just(""), st.text(max_size=20), st.text("ab .", max_size=30))


@st.composite
def _near_misses(draw: st.DrawFn) -> Pair:
    """A text, and the same with one word doubled, moved or lost."""
    reference = draw(TEXTS)
    words = reference.split(" ")
    word = words.pop(draw(st.integers(0, len(words) - 1)))
    for _ in range(draw(st.integers(0, 2))):
        words.insert(draw(st.integers(0, len(words))), word)
    return " ".join(words), reference


PAIRS = st.one_of(st.tuples(TEXTS, TEXTS), _near_misses(), TEXTS.map(lambda text: (text, text)))
CORPORA = st.lists(PAIRS, max_size=6)
CORPUS_FILES = ("home_assistant_german.jsonl", "docstring_summaries.jsonl")


def real_pairs(name: str) -> list[Pair]:
    """Return 250 pairs of published sentences, where the hypothesis is mostly a neighbor of the reference."""
    lines = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["hypothesis"], row["reference"]) for row in rows]


def columns(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Return (hypotheses, references)."""
    return [hypothesis for hypothesis, _ in pairs], [reference for _, reference in pairs]


def added(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    """Return what the server sees of two owners."""
    assert left.keys() == right.keys()
    return {name: left[name] + right[name] for name in left}
