"""Corpus BLEU as sacreBLEU computes it (13a tokens, mixed case, exponential smoothing), as a function of sums.

Papineni et al. 2002, aclanthology.org/P02-1040; Post 2018, arXiv:1804.08771. An n-gram is a run of n tokens. To 13a a
sentence in Chinese is one token: where the reference is of such a script, its characters are set apart first, as
sacreBLEU's "zh" does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from agfl_models.metrics.scripts import is_unspaced, spaced_out

if TYPE_CHECKING:
    from sacrebleu import BLEU

_ORDERS = range(1, 5)
_MATCHES = tuple(f"eval/bleu/match{n}" for n in _ORDERS)  # n-grams of the hypotheses that their references have too
_TOTALS = tuple(f"eval/bleu/total{n}" for n in _ORDERS)  # all n-grams of the hypotheses
_REFERENCE_LENGTH = "eval/bleu/reference_length"  # tokens of the references
NAMES = (*_MATCHES, *_TOTALS, _REFERENCE_LENGTH)
SCORES = ("eval/bleu",)


def bleu_sums(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the n-gram counts of `hypotheses` against one reference each: whole numbers.

    The tokens of the hypotheses are no sum of their own, since a token is a 1-gram.
    """
    assert len(hypotheses) == len(references), (len(hypotheses), len(references))
    if not hypotheses:
        return dict.fromkeys(NAMES, 0.0)
    pairs = [_apart(*pair) for pair in zip(hypotheses, references, strict=True)]
    found = _metric().corpus_score([left for left, _ in pairs], [[right for _, right in pairs]])
    counts = (*found.counts, *found.totals, found.ref_len)
    return {name: float(count) for name, count in zip(NAMES, counts, strict=True)}


def bleu_scores(sums: Mapping[str, float]) -> dict[str, float]:
    """Return BLEU, 0 to 100; nothing where there was no token on either side."""
    matches = [round(sums[name]) for name in _MATCHES]
    totals = [round(sums[name]) for name in _TOTALS]
    reference_length = round(sums[_REFERENCE_LENGTH])
    if totals[0] == reference_length == 0:
        return {}
    score = _metric().compute_bleu(matches, totals, totals[0], reference_length, smooth_method="exp")
    return {"eval/bleu": score.score}


def bleu_signature() -> str:
    """Return sacreBLEU's signature and what we do first, which belong beside every BLEU that is printed."""
    return f"{_metric().get_signature().format()}|references without spaces (cjk etc.):characters"


def _apart(hypothesis: str, reference: str) -> tuple[str, str]:
    return (spaced_out(hypothesis), spaced_out(reference)) if is_unspaced(reference) else (hypothesis, reference)


@cache
def _metric() -> BLEU:
    # Imported where it is used: it takes 0.1 s, and most runs report no BLEU.
    from sacrebleu import BLEU

    # `force` silences advice about text that looks tokenized; without a reference there is no signature.
    return BLEU(tokenize="13a", smooth_method="exp", force=True, references=[[""]])
