"""Translation: BLEU and chrF2 of what the model writes, and BLEU once more on sources of at least four words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from agfl_models.examples import Row, Text
from agfl_models.metrics import bleu, chrf
from agfl_models.tasks.config import TASKS
from agfl_models.tasks.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig, TextScore
from agfl_models.tasks.task import MainMetric
from agfl_models.tokenizers.tokenizer import TextTokenizer

MAIN_METRIC = MainMetric("eval/bleu", "BLEU", 0.0, 100.0, higher_is_better=True)
LONG_SOURCE = 4  # words: a phrase of two or three can be right as a whole, and says little of a translator


class TranslationRow(Row):
    """A text and its translation."""

    source: Text
    target: Text

    @property
    def texts(self) -> tuple[str, ...]:
        """Source and target."""
        return self.source, self.target


@TASKS.register
class TranslationConfig(SequenceToSequenceConfig):
    """Translation of `source` to `target`."""

    row: ClassVar[type[Row]] = TranslationRow
    main_metric: ClassVar[MainMetric] = MAIN_METRIC
    command: ClassVar[str] = "translate"

    type: Literal["translation"]

    def build(self, tokenizer: TextTokenizer) -> SequenceToSequence:
        """Return the task."""
        return SequenceToSequence(self, tokenizer, MAIN_METRIC, SCORE)


def _sums(hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, float]:
    long = [i for i, source in enumerate(sources) if len(source.split()) >= LONG_SOURCE]
    on_long = bleu.bleu_sums([hypotheses[i] for i in long], [references[i] for i in long])
    return {
        **bleu.bleu_sums(hypotheses, references),
        **chrf.chrf_sums(hypotheses, references),
        **{_on_long(name): value for name, value in on_long.items()},
    }


def _scores(sums: Mapping[str, float]) -> dict[str, float]:
    on_long = bleu.bleu_scores({name: sums[_on_long(name)] for name in bleu.NAMES})
    return {
        **bleu.bleu_scores(sums),
        **chrf.chrf_scores(sums),
        **{_on_long(name): value for name, value in on_long.items()},
    }


def _on_long(name: str) -> str:
    return name.replace("eval/bleu", "eval/bleu_long")


SCORE = TextScore(
    sum_names=(*bleu.NAMES, *chrf.NAMES, *map(_on_long, bleu.NAMES)),
    score_names=(*bleu.SCORES, *chrf.SCORES, *map(_on_long, bleu.SCORES)),
    sums=_sums,
    scores=_scores,
)
