"""Extractive question answering: the answer is a span of the context, or there is none; exact match and F1.

Legend: N windows of a batch, T positions of the longest one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field, StrictInt, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from agfl_models.bounded import Length
from agfl_models.errors import DataError
from agfl_models.examples import Row, Text
from agfl_models.layers.layer import at_least_float32
from agfl_models.metrics import span_overlap
from agfl_models.model.families import AnyModelConfig
from agfl_models.tasks import distribution
from agfl_models.tasks.answers import Answers, as_columns, as_starts, locate
from agfl_models.tasks.config import TASKS, TextTaskConfig
from agfl_models.tasks.dataset import ExampleDataset, pad, real_positions, split_rows
from agfl_models.tasks.spans import NO_ANSWER, QUESTION, Span, Window, room_for_question, windows_on
from agfl_models.tasks.task import IGNORED, MainMetric, check_kind
from agfl_models.tokenizers.tokenizer import TextTokenizer

log = logging.getLogger("agfl.models")
WINDOWS_AT_ONCE = 64  # a long context has thousands, for which memory would not do
MAIN_METRIC = MainMetric("eval/f1", "F1", 0.0, 100.0, higher_is_better=True)


class QuestionRow(Row):
    """A question about a context, and its answers in SQuAD's form; in a table they may start at a column of its own."""

    context: Text
    question: Text
    answer_start: Annotated[tuple[StrictInt, ...] | None, BeforeValidator(as_starts), Field(exclude=True)] = None
    answers: Annotated[Answers, BeforeValidator(as_columns)]

    @field_validator("answers")
    @classmethod
    def _locate(cls, answers: Answers, info: ValidationInfo) -> Answers:
        context = info.data.get("context")
        if context is None:  # which is an error of its own
            return answers
        if "answer_start" not in info.data:  # which is an error of its own, too
            return answers
        stated = answers.answer_start or info.data["answer_start"] or [None] * len(answers.text)
        if not answers.text:
            stated = ()  # a table has a number, often -1, where there is no answer
        if len(stated) != len(answers.text):
            raise ValueError(f"must have as many answer_start as text ({len(answers.text)}), got {len(stated)}")
        starts = tuple(locate(context, text, start) for text, start in zip(answers.text, stated, strict=True))
        return Answers(text=answers.text, answer_start=starts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Context and question; the answers are part of the context."""
        return self.context, self.question

    def changed(self, content: Mapping[str, Any]) -> str | None:
        """Say whether an answer stands elsewhere than its `answer_start` says in characters."""
        stated = as_columns(content["answers"]).get("answer_start") or self.answer_start or ()
        moved = any(
            start not in (None, place) for start, place in zip(stated, self.answers.answer_start or (), strict=False)
        )
        return "answer_start held no answer, as characters count, and was moved to the nearest one" if moved else None


@TASKS.register
class QuestionAnsweringConfig(TextTaskConfig):
    """Extractive question answering.

    context_length: tokens of a window, the question and its three special tokens included; a longer context is read in
    windows that overlap by half. max_answer_length: in tokens.
    """

    row: ClassVar[type[Row]] = QuestionRow
    main_metric: ClassVar[MainMetric] = MAIN_METRIC
    command: ClassVar[str] = "answer"

    type: Literal["question_answering"]
    context_length: int = Field(default=256, ge=8, le=1 << 17)
    max_answer_length: Length = 64

    @property
    def max_predictions(self) -> int:
        """An example's span is one prediction."""
        return 1

    def check_model(self, model: AnyModelConfig) -> None:
        """Raise BrokenRule unless `model` scores the start and the end of a span."""
        check_kind(model, self.type, "encoder", "span")

    def build(self, tokenizer: TextTokenizer) -> QuestionAnswering:
        """Return the task."""
        return QuestionAnswering(self, tokenizer)


class Example(NamedTuple):
    """A row, the windows on its context, and for each the span to be learned: None where nothing is."""

    row: QuestionRow
    windows: list[Window]
    targets: list[Span | None]


class Found(NamedTuple):
    """A part of a context, `context[start:end]`; "" from 0 to 0 where nothing answers."""

    text: str
    start: int
    end: int


NOT_FOUND = Found("", 0, 0)


@dataclass(frozen=True)
class SpanBatch:
    """ids, types: int64 (N, T), mask: bool (N, T); targets: int64 (N, 2), `IGNORED` where nothing is to be learned."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    targets: Tensor
    examples: tuple[Example, ...]

    def to(self, device: str) -> SpanBatch:
        """Return the batch on `device`."""
        ids, types, mask = self.ids.to(device), self.types.to(device), self.mask.to(device)
        return SpanBatch(ids, types, mask, self.targets.to(device), self.examples)


@dataclass(frozen=True)
class QuestionAnswering:
    """The task: cross entropy of the span's first and last position, and the overlap of found and right answers."""

    config: QuestionAnsweringConfig
    tokenizer: TextTokenizer
    main_metric: MainMetric = MAIN_METRIC
    train_sums: tuple[str, ...] = ("train/nll", "train/examples")
    eval_sums: tuple[str, ...] = ("eval/nll", "eval/examples", *span_overlap.NAMES, *distribution.BINS)
    metrics: tuple[str, ...] = (
        "train/loss",
        "eval/loss",
        *span_overlap.SCORES,
        span_overlap.SHARE,
        distribution.WORST_DECILE,
    )

    def prepare(self, rows: Sequence[QuestionRow]) -> ExampleDataset[Example, SpanBatch]:
        """Split by context and encode; training takes from each example the one window with the answer in it.

        Raises:
            DataError: there is no example to train on.
        """
        parts = split_rows(rows, self.config.validation_fraction)
        train, held_out = ([self.example(row) for row in part] for part in parts)
        learnable = [_only_learnable(example) for example in train if any(example.targets)]
        if not learnable:
            raise DataError(
                "AGFL-DATA-069",
                f"data: must hold at least one question whose answer fits into task.context_length = "
                f"{self.config.context_length}, got none of {len(rows)}",
            )
        if len(learnable) < len(train):
            count = len(train) - len(learnable)
            log.warning("%d of %d questions are left out: no window holds their whole answer", count, len(train))
        return ExampleDataset(learnable, held_out, self.collate, _size)

    def hold_out(self, rows: Sequence[QuestionRow]) -> ExampleDataset[Example, SpanBatch]:
        """Encode all rows to evaluate on."""
        return ExampleDataset([], [self.example(row) for row in rows], self.collate, _size)

    def example(self, row: QuestionRow) -> Example:
        """Return the example of a row. The first answer is the one to be learned."""
        windows = list(windows_on(row.question, row.context, self.config.context_length, self.tokenizer))
        if not row.answers.text:
            return Example(row, windows, [NO_ANSWER, *[None] * (len(windows) - 1)])
        assert row.answers.answer_start is not None
        start = row.answers.answer_start[0]
        assert start is not None  # a row locates its answers
        spans = [window.positions(start, start + len(row.answers.text[0])) for window in windows]
        first = next((i for i, span in enumerate(spans) if span is not None), None)
        return Example(row, windows, [span if i == first else None for i, span in enumerate(spans)])

    def cuts(self, question: str) -> bool:
        """Whether the windows leave out the end of the question."""
        return len(self.tokenizer.encode(question)) > room_for_question(self.config.context_length)

    def collate(self, examples: Sequence[Example]) -> SpanBatch:
        """Return the padded windows of the examples."""
        windows = [window for example in examples for window in example.windows]
        ids, types = [window.ids for window in windows], pad([window.types for window in windows], QUESTION)
        targets = [span or Span(IGNORED, IGNORED) for example in examples for span in example.targets]
        padded, mask = pad(ids, self.tokenizer.pad_id), real_positions(ids)
        return SpanBatch(padded, types, mask, torch.tensor(targets), tuple(examples))

    def loss(self, model: nn.Module, batch: SpanBatch) -> tuple[Tensor, int]:
        """Return (mean of the cross entropies of start and end in nats, summed over examples; number of examples)."""
        return self.summed_loss(model, batch), self.num_predictions(batch)

    def summed_loss(self, model: nn.Module, batch: SpanBatch) -> Tensor:
        """As of `SplitLoss`."""
        return _loss(_logits(model, batch), batch)

    def num_predictions(self, batch: SpanBatch) -> int:
        """As of `SplitLoss`."""
        return int((batch.targets[:, 0] != IGNORED).sum())

    def evaluate(self, model: nn.Module, batch: SpanBatch) -> dict[str, float]:
        """Return nll, number of examples that it counts, and exact match and F1 of the answers that are found."""
        logits_NT2 = _logits(model, batch)
        nll, examples = _loss(logits_NT2, batch), self.num_predictions(batch)
        references = [example.row.answers.text for example in batch.examples]
        overlap = span_overlap.span_overlap_sums(self.decode(logits_NT2, batch), references)
        return {"eval/nll": float(nll), "eval/examples": float(examples), **overlap}

    def answer(self, model: nn.Module, batch: SpanBatch) -> list[Found]:
        """Return the model's answer to each example."""
        return self.locate(_logits(model, batch), batch)

    def decode(self, logits_NT2: Tensor, batch: SpanBatch) -> list[str]:
        """Return the text of each example's answer."""
        return [found.text for found in self.locate(logits_NT2, batch)]

    def locate(self, logits_NT2: Tensor, batch: SpanBatch) -> list[Found]:
        """Return each example's best answer; none where no span beats the no-answer score.

        The best span of all windows is held against the lowest no-answer score of one: a window that holds the answer
        outweighs those that do not.
        """
        logits_NT2, found, row = logits_NT2.float().cpu(), [], 0
        for example in batch.examples:
            best, no_answer, place = -torch.inf, torch.inf, slice(0, 0)
            for window, logits_T2 in zip(example.windows, logits_NT2[row:], strict=False):
                no_answer = min(no_answer, float(logits_T2[0].sum()))
                score, span = window.best_span(logits_T2, self.config.max_answer_length)
                if score > best:
                    best, place = score, window.characters(example.row.context, span)
            text = example.row.context[place]
            found.append(Found(text, place.start, place.stop) if text and best > no_answer else NOT_FOUND)
            row += len(example.windows)
        return found

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean training loss in nats an example."""
        return {"train/loss": sums["train/nll"] / max(sums["train/examples"], 1.0)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats an example), exact match and F1; nothing where no owner held an example out."""
        loss = {"eval/loss": sums["eval/nll"] / sums["eval/examples"]} if sums["eval/examples"] else {}
        overlap = span_overlap.span_overlap_scores(sums)
        return {**loss, **overlap, **distribution.worst_decile(self.main_metric, sums)}


def _size(example: Example) -> int:
    return len(example.windows[0].ids)


def _only_learnable(example: Example) -> Example:
    i = next(i for i, span in enumerate(example.targets) if span is not None)
    return Example(example.row, [example.windows[i]], [example.targets[i]])


def _logits(model: nn.Module, batch: SpanBatch) -> Tensor:
    parts = [slice(first, first + WINDOWS_AT_ONCE) for first in range(0, len(batch.ids), WINDOWS_AT_ONCE)]
    logits_NT2 = torch.cat([model(batch.ids[part], batch.mask[part], types_BT=batch.types[part]) for part in parts])
    return at_least_float32(logits_NT2).masked_fill(~batch.mask[:, :, None], -torch.inf)


def _loss(logits_NT2: Tensor, batch: SpanBatch) -> Tensor:
    start, end = (
        F.cross_entropy(logits_NT2[:, :, i], batch.targets[:, i], ignore_index=IGNORED, reduction="sum") for i in (0, 1)
    )
    return (start + end) / 2
