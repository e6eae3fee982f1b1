"""ROUGE-1, ROUGE-2 and ROUGE-L as Google's rouge-score computes them without stemming, as a function of sums.

Lin 2004, aclanthology.org/W04-1013. Each is the mean of the examples' F1; ROUGE-L takes a text as one sentence. Tokens
are runs of a-z and 0-9 in lower case, and rouge-score knows no others: to it a perfect summary in Cyrillic is worth 0.
Where a reference is mostly of other letters they are Unicode's words, and characters where a script has no spaces; a
sum says how many references that were.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from agfl_models.metrics.scripts import is_beyond_ascii, unicode_words

_TYPES = ("rouge1", "rouge2", "rougeL")
_COUNT, _BEYOND_ASCII = "eval/rouge/count", "eval/rouge/beyond_ascii"  # examples; those of other letters
NAMES = (*(f"eval/rouge/{kind}" for kind in _TYPES), _COUNT, _BEYOND_ASCII)
SCORES = tuple(f"eval/{kind}" for kind in _TYPES)
SHARE = "eval/beyond_ascii"  # of references that rouge-score knows no words of, in percent


def rouge_sums(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the summed F1 of each type, 0 to 1 an example, the number of examples, and of those beyond ASCII."""
    sums = dict.fromkeys(NAMES, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        is_beyond = is_beyond_ascii(reference)
        tokens = unicode_words if is_beyond else _tokens
        left, right = tokens(hypothesis), tokens(reference)
        for n in (1, 2):
            sums[f"eval/rouge/rouge{n}"] += _ngram_f1(left, right, n)
        sums["eval/rouge/rougeL"] += _f1(lcs_length(left, right), len(left), len(right))
        sums[_COUNT] += 1
        sums[_BEYOND_ASCII] += is_beyond
    return sums


def rouge_scores(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the mean F1 of each type and the share beyond ASCII, 0 to 100; nothing where there was no example."""
    count = sums[_COUNT]
    if count == 0:
        return {}
    scores = {f"eval/{kind}": 100 * sums[f"eval/rouge/{kind}"] / count for kind in _TYPES}
    return {**scores, SHARE: 100 * sums[_BEYOND_ASCII] / count}


def rouge_signature() -> str:
    """Return what says how ROUGE was computed, which belongs beside every one that is printed."""
    return "as rouge-score 0.1.2|stem:no|tok:a-z0-9|references beyond ASCII:unicode words, cjk etc. characters"


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the usual table differs from cell to cell by 0 or 1; here it is one integer, with a zero bit where it rises
    (Hyyro 2004, "Bit-parallel LCS-length computation revisited", figure 3): one addition does the work of a row.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << i
    row = ones = (1 << len(left)) - 1
    for token in right:
        matches = row & places.get(token, 0)
        row = (row + matches) | (row - matches)
    return len(left) - (row & ones).bit_count()


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _ngram_f1(left: list[str], right: list[str], n: int) -> float:
    in_left, in_right = _ngrams(left, n), _ngrams(right, n)
    return _f1((in_left & in_right).total(), in_left.total(), in_right.total())


def _ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _f1(common: int, num_left: int, num_right: int) -> float:
    """Return 2PR / (P + R), where P = common / left and R = common / right; 0 where either side is empty."""
    return 2 * common / (num_left + num_right) if common else 0.0
