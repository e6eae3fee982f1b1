"""Corpus chrF2 as sacreBLEU computes it (1- to 6-grams of characters, no words, no whitespace), as a function of sums.

Popovic 2015, aclanthology.org/W15-3049. sacreBLEU gives out no counts of its chrF, so they are counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

_ORDERS = range(1, 7)
_BETA = 2  # recall matters twice as much as precision
NAMES = tuple(f"eval/chrf/{kind}{n}" for n in _ORDERS for kind in ("hypothesis", "reference", "match"))
SCORES = ("eval/chrf",)


def chrf_sums(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the character n-gram counts of `hypotheses` against one reference each: whole numbers."""
    sums = dict.fromkeys(NAMES, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        left, right = "".join(hypothesis.split()), "".join(reference.split())
        for n in _ORDERS:
            in_hypothesis, in_reference = _ngrams(left, n), _ngrams(right, n)
            # As in sacreBLEU: a reference too short for this order cannot make a hypothesis wrong.
            sums[f"eval/chrf/hypothesis{n}"] += in_hypothesis.total() if in_reference else 0
            sums[f"eval/chrf/reference{n}"] += in_reference.total()
            sums[f"eval/chrf/match{n}"] += (in_hypothesis & in_reference).total()
    return sums


def chrf_scores(sums: Mapping[str, float]) -> dict[str, float]:
    """Return chrF2, 0 to 100; nothing where no reference had a character.

    Precision and recall are means over the orders that occur on both sides (sacreBLEU's "eff:yes").
    """
    if sums["eval/chrf/reference1"] == 0:
        return {}
    precision = recall = 0.0
    orders = 0
    for n in _ORDERS:
        in_hypothesis, in_reference = sums[f"eval/chrf/hypothesis{n}"], sums[f"eval/chrf/reference{n}"]
        if in_hypothesis > 0 and in_reference > 0:
            precision += sums[f"eval/chrf/match{n}"] / in_hypothesis
            recall += sums[f"eval/chrf/match{n}"] / in_reference
            orders += 1
    if precision + recall == 0:
        return {"eval/chrf": 0.0}
    # In sacreBLEU's order of operations, so that the last bit is the same.
    precision, recall = precision / orders, recall / orders
    score = (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)
    return {"eval/chrf": 100 * score}


def chrf_signature() -> str:
    """Return sacreBLEU's signature of the same metric, which belongs beside every chrF that is printed."""
    from sacrebleu import CHRF  # where it is used: it takes 0.1 s

    metric = CHRF(char_order=_ORDERS[-1], word_order=0, beta=_BETA, references=[[""]])
    return str(metric.get_signature().format())


def _ngrams(characters: str, n: int) -> Counter[str]:
    return Counter(characters[i : i + n] for i in range(len(characters) - n + 1))
