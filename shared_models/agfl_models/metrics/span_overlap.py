"""Exact match and F1 of answers as SQuAD 2.0 defines them, as a function of sums.

Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822: the best over an example's reference answers, on
text without case, punctuation and articles. F1 counts words between spaces, and characters where an answer is of a
script without spaces, in which SQuAD's script would take a whole answer for one word; a sum says how many examples had
such an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from agfl_models.metrics.scripts import is_unspaced, unicode_words

_EXACT, _F1, _COUNT, _UNSPACED = NAMES = (
    "eval/span/exact_match",
    "eval/span/f1",
    "eval/span/count",
    "eval/span/unspaced",
)
SCORES = ("eval/exact_match", "eval/f1")
SHARE = "eval/unspaced"  # of examples with an answer that is counted by characters, in percent
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def span_overlap_sums(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return summed exact match and F1, 0 to 1 an example, the number of examples, and of those without spaces.

    An example without references has no answer; the empty hypothesis says the same. A reference of which normalizing
    leaves nothing is none, as in the official script for SQuAD 2.0.
    """
    sums = dict.fromkeys(NAMES, 0.0)
    for hypothesis, answers in zip(hypotheses, references, strict=True):
        found = normalize(hypothesis)
        expected = [text for text in map(normalize, answers) if text] or [""]
        sums[_EXACT] += float(found in expected)
        sums[_F1] += max(_f1(found, text) for text in expected)
        sums[_COUNT] += 1
        sums[_UNSPACED] += any(map(is_unspaced, expected))
    return sums


def span_overlap_scores(sums: Mapping[str, float]) -> dict[str, float]:
    """Return exact match, F1 and the share without spaces, in percent; nothing where there was no example."""
    count = sums[_COUNT]
    if count == 0:
        return {}
    names = {"eval/exact_match": _EXACT, "eval/f1": _F1, SHARE: _UNSPACED}
    return {name: 100 * sums[key] / count for name, key in names.items()}


def normalize(answer: str) -> str:
    """Return `answer` in lower case without ASCII punctuation, English articles and superfluous spaces."""
    plain = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def f1_signature() -> str:
    """Return what says how F1 and exact match were computed."""
    return "as SQuAD evaluate-v2.0|tok:spaces|answers without spaces (cjk etc.):characters"


def _f1(found: str, expected: str) -> float:
    if is_unspaced(expected):
        return _token_f1(unicode_words(found), unicode_words(expected))
    return _token_f1(found.split(), expected.split())


def _token_f1(left: list[str], right: list[str]) -> float:
    """Return the F1 of two bags of tokens: 1 where both are empty, 0 where one is."""
    if not left or not right:
        return float(left == right)
    common = (Counter(left) & Counter(right)).total()
    return 2 * common / (len(left) + len(right))
