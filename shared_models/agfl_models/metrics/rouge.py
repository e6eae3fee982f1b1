"""ROUGE-1, ROUGE-2 and ROUGE-L as Google's rouge-score computes them without stemming, as a function of sums.

Lin 2004, aclanthology.org/W04-1013. Each is the mean of the examples' F1; ROUGE-L takes a text as one sentence. Tokens
are runs of a-z and 0-9 in lower case: like rouge-score, this tells nothing of text that is not English.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

_TYPES = ("rouge1", "rouge2", "rougeL")
_COUNT = "eval/rouge/count"  # examples
NAMES = (*(f"eval/rouge/{kind}" for kind in _TYPES), _COUNT)
SCORES = tuple(f"eval/{kind}" for kind in _TYPES)


def rouge_sums(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the summed F1 of each type, 0 to 1 an example, and the number of examples."""
    sums = dict.fromkeys(NAMES, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        left, right = _tokens(hypothesis), _tokens(reference)
        for n in (1, 2):
            sums[f"eval/rouge/rouge{n}"] += _ngram_f1(left, right, n)
        sums["eval/rouge/rougeL"] += _f1(lcs_length(left, right), len(left), len(right))
        sums[_COUNT] += 1
    return sums


def rouge_scores(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the mean F1 of each type, 0 to 100; nothing where there was no example."""
    count = sums[_COUNT]
    if count == 0:
        return {}
    return {f"eval/{kind}": 100 * sums[f"eval/rouge/{kind}"] / count for kind in _TYPES}


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
