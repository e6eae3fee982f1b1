"""Text classification: which of the declared labels a text has; accuracy, and F1 averaged over labels.

Legend: B batch, T longest text, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from agfl_models.bounded import Length, shown
from agfl_models.errors import BrokenRule, DataError
from agfl_models.examples import Row, Text
from agfl_models.layers.layer import at_least_float32
from agfl_models.metrics import classification
from agfl_models.model.families import AnyModelConfig
from agfl_models.model.heads import ClassificationHeadConfig
from agfl_models.tasks import distribution
from agfl_models.tasks.config import TASKS, TextTaskConfig
from agfl_models.tasks.dataset import ExampleDataset, pad, real_positions, split_rows
from agfl_models.tasks.task import IGNORED, MainMetric, check_kind
from agfl_models.tokenizers.tokenizer import TextTokenizer

MAIN_METRIC = MainMetric(classification.ACCURACY, "accuracy", 0.0, 100.0, higher_is_better=True)
MAX_LABELS = 256  # each adds three numbers to the sum


class LabeledRow(Row):
    """A text and its label."""

    text: Text
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The text; a label is one of the run's words, not the owner's."""
        return (self.text,)


@TASKS.register
class TextClassificationConfig(TextTaskConfig):
    """Text classification.

    labels: all that there are, in the order of the head's classes; part of the run, so nobody learns one from an owner.
    sequence_length: T, in tokens; what is longer is cut.
    """

    row: ClassVar[type[Row]] = LabeledRow
    main_metric: ClassVar[MainMetric] = MAIN_METRIC
    command: ClassVar[str] = "classify"

    type: Literal["text_classification"]
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...],
        Field(min_length=2, max_length=MAX_LABELS, fail_fast=True),
    ]
    sequence_length: Length = 64

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise BrokenRule("AGFL-CONFIG-128", f"must differ from each other, got {shown(twice)} twice")
        return labels

    @property
    def max_predictions(self) -> int:
        """A label is one prediction."""
        return 1

    @property
    def context_length(self) -> int:
        """Most tokens that attention looks at."""
        return self.sequence_length

    def check_model(self, model: AnyModelConfig) -> None:
        """Raise BrokenRule unless `model` has one class for each label."""
        check_kind(model, self.type, "encoder", "classification")
        head = getattr(model, "head", None)
        if isinstance(head, ClassificationHeadConfig) and head.num_classes != len(self.labels):
            rule = f"must be {len(self.labels)}, the number of task.labels"
            raise BrokenRule("AGFL-CONFIG-129", f"model.head.num_classes: {rule}, got {head.num_classes}")

    def build(self, tokenizer: TextTokenizer) -> TextClassification:
        """Return the task."""
        return TextClassification(self, tokenizer)


class Example(NamedTuple):
    """Token ids of a text, and the index of its label."""

    ids: list[int]
    label: int


@dataclass(frozen=True)
class LabelBatch:
    """ids: int64 (B, T); mask: bool (B, T); labels: int64 (B,)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: str) -> LabelBatch:
        """Return the batch on `device`."""
        return LabelBatch(self.ids.to(device), self.mask.to(device), self.labels.to(device))


@dataclass(frozen=True)
class TextClassification:
    """The task: cross entropy of the label."""

    config: TextClassificationConfig
    tokenizer: TextTokenizer
    main_metric: MainMetric = MAIN_METRIC
    train_sums: tuple[str, ...] = ("train/nll", "train/examples")
    metrics: tuple[str, ...] = ("train/loss", "eval/loss", *classification.SCORES, distribution.WORST_DECILE)

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """Loss, examples, and for each label what was right, wrong and missed."""
        return ("eval/nll", "eval/examples", *classification.names(len(self.config.labels)), *distribution.BINS)

    def prepare(self, rows: Sequence[LabeledRow]) -> ExampleDataset[Example, LabelBatch]:
        """Split by text and encode; raises DataError without a row, or where a label is none of the run's."""
        if not rows:
            raise DataError("AGFL-DATA-071", "data: must hold at least one example, got none")
        train, held_out = split_rows(rows, self.config.validation_fraction)
        return self._dataset(train, held_out)

    def hold_out(self, rows: Sequence[LabeledRow]) -> ExampleDataset[Example, LabelBatch]:
        """Encode all rows to evaluate on; raises DataError as `prepare`."""
        return self._dataset([], rows)

    def encode(self, text: str) -> list[int]:
        """Return the text as the model reads it: its tokens, cut to length, and EOS."""
        return [*self.tokenizer.encode(text)[: self.config.sequence_length - 1], self.tokenizer.eos_id]

    def cuts(self, text: str) -> bool:
        """Whether `encode` leaves out the end of the text."""
        return len(self.tokenizer.encode(text)) > self.config.sequence_length - 1

    def collate(self, examples: Sequence[Example]) -> LabelBatch:
        """Return a padded batch."""
        ids = [example.ids for example in examples]
        labels = torch.tensor([example.label for example in examples])
        return LabelBatch(pad(ids, self.tokenizer.pad_id), real_positions(ids), labels)

    def probabilities(self, model: nn.Module, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return how probable each label is of each text, the most probable first."""
        ids = [self.encode(text) for text in texts]
        logits_BC: Tensor = model(pad(ids, self.tokenizer.pad_id), real_positions(ids))
        found = [dict(zip(self.config.labels, row, strict=True)) for row in logits_BC.float().softmax(dim=-1).tolist()]
        return [dict(sorted(one.items(), key=lambda item: -item[1])) for one in found]

    def loss(self, model: nn.Module, batch: LabelBatch) -> tuple[Tensor, int]:
        """Return (negative log-likelihood in nats summed over examples, number of examples)."""
        return self.summed_loss(model, batch), self.num_predictions(batch)

    def summed_loss(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        """As of `SplitLoss`."""
        return _nll(model(batch.ids, batch.mask), batch)

    def num_predictions(self, batch: LabelBatch) -> int:
        """As of `SplitLoss`."""
        return len(batch.labels)

    def evaluate(self, model: nn.Module, batch: LabelBatch) -> dict[str, float]:
        """Return nll, number of examples, and what was right, wrong and missed by label."""
        logits_BC = model(batch.ids, batch.mask)
        found, right = logits_BC.argmax(dim=-1).tolist(), batch.labels.tolist()
        sums = classification.classification_sums(found, right, len(self.config.labels))
        return {"eval/nll": float(_nll(logits_BC, batch)), "eval/examples": float(len(right)), **sums}

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean training loss in nats an example."""
        return {"train/loss": sums["train/nll"] / max(sums["train/examples"], 1.0)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats an example), accuracy and macro F1; nothing where no owner held an example out."""
        if sums["eval/examples"] == 0:
            return {}
        scores = classification.classification_scores(sums, len(self.config.labels))
        worst = distribution.worst_decile(self.main_metric, sums)
        return {"eval/loss": sums["eval/nll"] / sums["eval/examples"], **scores, **worst}

    def _dataset(
        self, train: Sequence[LabeledRow], held_out: Sequence[LabeledRow]
    ) -> ExampleDataset[Example, LabelBatch]:
        examples, others = ([self._example(row) for row in part] for part in (train, held_out))
        return ExampleDataset(examples, others, self.collate, lambda example: len(example.ids))

    def _example(self, row: LabeledRow) -> Example:
        if row.label not in self.config.labels:
            known = ", ".join(self.config.labels)
            raise DataError(
                "AGFL-DATA-072", f"data: label: must be one of task.labels ({known}), got {shown(row.label)}"
            )
        return Example(self.encode(row.text), self.config.labels.index(row.label))


def _nll(logits_BC: Tensor, batch: LabelBatch) -> Tensor:
    return F.cross_entropy(at_least_float32(logits_BC), batch.labels, ignore_index=IGNORED, reduction="sum")
