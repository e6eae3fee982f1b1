"""What says exactly how a score was computed, for the scores whose field has such a thing."""

from __future__ import annotations

from collections.abc import Iterable

from agfl_models.metrics import rouge, span_overlap
from agfl_models.metrics.bleu import bleu_signature
from agfl_models.metrics.chrf import chrf_signature

_OF = {
    "eval/bleu": bleu_signature,
    "eval/bleu_long": bleu_signature,
    "eval/chrf": chrf_signature,
    **dict.fromkeys(rouge.SCORES, rouge.rouge_signature),
    **dict.fromkeys(span_overlap.SCORES, span_overlap.f1_signature),
}


def signatures(names: Iterable[str]) -> dict[str, str]:
    """Return the signature of each metric that has one."""
    return {name: _OF[name]() for name in names if name in _OF}
