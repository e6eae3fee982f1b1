"""Summarization: ROUGE-1, ROUGE-2 and ROUGE-L of what the model writes."""

from __future__ import annotations

from typing import ClassVar, Literal

from agfl_models.bounded import Length
from agfl_models.examples import Row, Text
from agfl_models.metrics import rouge
from agfl_models.tasks.config import TASKS
from agfl_models.tasks.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig, TextScore
from agfl_models.tasks.task import MainMetric
from agfl_models.tokenizers.tokenizer import TextTokenizer

MAIN_METRIC = MainMetric("eval/rougeL", "ROUGE-L", 0.0, 100.0, higher_is_better=True)


class SummaryRow(Row):
    """A text and what it says in short."""

    document: Text
    summary: Text

    @property
    def texts(self) -> tuple[str, ...]:
        """Document and summary."""
        return self.document, self.summary


@TASKS.register
class SummarizationConfig(SequenceToSequenceConfig):
    """Summarization of `document` to `summary`."""

    row: ClassVar[type[Row]] = SummaryRow
    main_metric: ClassVar[MainMetric] = MAIN_METRIC
    command: ClassVar[str] = "summarize"

    type: Literal["summarization"]
    source_length: Length = 256

    def build(self, tokenizer: TextTokenizer) -> SequenceToSequence:
        """Return the task."""
        return SequenceToSequence(self, tokenizer, MAIN_METRIC, SCORE)


SCORE = TextScore(
    sum_names=rouge.NAMES,
    score_names=(*rouge.SCORES, rouge.SHARE),
    sums=lambda hypotheses, references, sources: rouge.rouge_sums(hypotheses, references),
    scores=rouge.rouge_scores,
)
