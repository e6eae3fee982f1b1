"""What translation and summarization share: an encoder reads the source, a decoder writes the target.

Legend: B batch, S longest source, T longest target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from agfl_models.bounded import Length
from agfl_models.errors import DataError
from agfl_models.examples import Row
from agfl_models.layers.layer import at_least_float32
from agfl_models.model.families import AnyModelConfig
from agfl_models.model.generation import GenerationConfig, generate
from agfl_models.model.sequence_model import SequenceModel, decoding
from agfl_models.tasks import distribution
from agfl_models.tasks.config import TextTaskConfig
from agfl_models.tasks.dataset import ExampleDataset, pad, real_positions, split_rows
from agfl_models.tasks.task import IGNORED, MainMetric, check_kind
from agfl_models.tokenizers.tokenizer import TextTokenizer


class SequenceToSequenceConfig(TextTaskConfig):
    """Settings of a task that writes one text for another.

    source_length, target_length: longest source and target in tokens, their ends included; what is longer is cut.
    num_beams: 1 decodes greedily.
    """

    type: str
    source_length: Length = 64
    target_length: Length = 64
    num_beams: Annotated[int, Field(gt=0, le=64)] = 1

    @property
    def max_predictions(self) -> int:
        """Most predictions of one example."""
        return self.target_length

    @property
    def context_length(self) -> int:
        """Most tokens that attention looks at."""
        return max(self.source_length, self.target_length)

    def check_model(self, model: AnyModelConfig) -> None:
        """Raise BrokenRule unless `model` reads one text and writes another."""
        check_kind(model, self.type, "encoder_decoder", "language_model")


@dataclass(frozen=True)
class TextScore:
    """How written texts are scored: `sums` of (hypotheses, references, sources), and `scores` of sums over owners."""

    sum_names: tuple[str, ...]
    score_names: tuple[str, ...]
    sums: Callable[[Sequence[str], Sequence[str], Sequence[str]], dict[str, float]]
    scores: Callable[[Mapping[str, float]], dict[str, float]]


class Pair(NamedTuple):
    """An example: token ids as the model sees them, and the texts they come from."""

    source_ids: list[int]
    target_ids: list[int]
    source: str
    target: str


@dataclass(frozen=True)
class PairBatch:
    """source: int64 (B, S), source_mask: bool (B, S); inputs, targets: int64 (B, T); texts: of the examples."""

    source: Tensor
    source_mask: Tensor
    inputs: Tensor
    targets: Tensor
    texts: tuple[tuple[str, str], ...]

    def to(self, device: str) -> PairBatch:
        """Return the batch on `device`."""
        source, source_mask = self.source.to(device), self.source_mask.to(device)
        return PairBatch(source, source_mask, self.inputs.to(device), self.targets.to(device), self.texts)


@dataclass(frozen=True)
class SequenceToSequence:
    """The task: cross entropy of the target's tokens, and a score of what the model writes by itself."""

    config: SequenceToSequenceConfig
    tokenizer: TextTokenizer
    main_metric: MainMetric
    score: TextScore
    train_sums: tuple[str, ...] = ("train/nll", "train/tokens")

    @property
    def eval_sums(self) -> tuple[str, ...]:
        """Names of the sums that evaluation adds to a round."""
        return ("eval/nll", "eval/tokens", *self.score.sum_names, *distribution.BINS)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that the task reports."""
        return ("train/loss", "eval/loss", *self.score.score_names, distribution.WORST_DECILE)

    def prepare(self, rows: Sequence[Row]) -> ExampleDataset[Pair, PairBatch]:
        """Split by source and encode.

        Raises:
            DataError: there is no row.
        """
        if not rows:
            raise DataError("AGFL-DATA-070", "data: must hold at least one example, got none")
        train, held_out = split_rows(rows, self.config.validation_fraction)
        pairs, held_out_pairs = ([self._pair(row) for row in part] for part in (train, held_out))
        return ExampleDataset(pairs, held_out_pairs, self.collate, _size)

    def hold_out(self, rows: Sequence[Row]) -> ExampleDataset[Pair, PairBatch]:
        """Encode all rows to evaluate on."""
        return ExampleDataset([], [self._pair(row) for row in rows], self.collate, _size)

    @property
    def decoding(self) -> GenerationConfig:
        """How the model writes where nobody says otherwise."""
        return GenerationConfig(max_new_tokens=self.config.target_length, num_beams=self.config.num_beams)

    def encode_source(self, text: str) -> list[int]:
        """Return the source as the encoder reads it: its tokens, cut to length, and EOS."""
        return [*self.tokenizer.encode(text)[: self.config.source_length - 1], self.tokenizer.eos_id]

    def cuts(self, text: str) -> bool:
        """Whether `encode_source` leaves out the end of the text."""
        return len(self.tokenizer.encode(text)) > self.config.source_length - 1

    def collate(self, pairs: Sequence[Pair]) -> PairBatch:
        """Return a padded batch."""
        sources = [pair.source_ids for pair in pairs]
        inputs = [[self.tokenizer.bos_id, *pair.target_ids[:-1]] for pair in pairs]
        return PairBatch(
            pad(sources, self.tokenizer.pad_id),
            real_positions(sources),
            pad(inputs, self.tokenizer.pad_id),  # padding stands at the end, where no real position sees it
            pad([pair.target_ids for pair in pairs], IGNORED),
            tuple((pair.source, pair.target) for pair in pairs),
        )

    def loss(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Return (negative log-likelihood in nats summed over target tokens, number of target tokens)."""
        return self.summed_loss(model, batch), self.num_predictions(batch)

    def summed_loss(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """As of `SplitLoss`."""
        logits_BTV = model(batch.inputs, source=batch.source, source_mask=batch.source_mask)
        logits_NV = at_least_float32(logits_BTV.flatten(0, 1))
        return F.cross_entropy(logits_NV, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def num_predictions(self, batch: PairBatch) -> int:
        """As of `SplitLoss`."""
        return int((batch.targets != IGNORED).sum())

    def write(self, model: SequenceModel, source: Tensor, source_mask: Tensor, config: GenerationConfig) -> list[str]:
        """Return what the model writes for each source, (B, S) with its mask."""
        memory = model.encode(source, source_mask)
        prompts = [[self.tokenizer.bos_id]] * len(source)
        written = generate(model, prompts, config, eos_id=self.tokenizer.eos_id, memory=memory)
        return [self.tokenizer.decode(ids) for ids in written]

    def evaluate(self, model: nn.Module, batch: PairBatch) -> dict[str, float]:
        """Return nll, number of target tokens, and the sums of the score of what the model writes."""
        nll, tokens = self.loss(model, batch)
        hypotheses = self.write(decoding(model), batch.source, batch.source_mask, self.decoding)
        sources, references = zip(*batch.texts, strict=True)
        return {
            "eval/nll": float(nll),
            "eval/tokens": float(tokens),
            **self.score.sums(hypotheses, references, sources),
        }

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean training loss in nats a token."""
        return {"train/loss": sums["train/nll"] / max(sums["train/tokens"], 1.0)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats a token) and the scores; nothing where no owner held an example out."""
        if sums["eval/tokens"] == 0:
            return {}
        return {
            "eval/loss": sums["eval/nll"] / sums["eval/tokens"],
            **self.score.scores(sums),
            **distribution.worst_decile(self.main_metric, sums),
        }

    def _pair(self, row: Row) -> Pair:
        source, target = row.texts
        # A target that is cut has no end to learn.
        target_ids = [*self.tokenizer.encode(target), self.tokenizer.eos_id][: self.config.target_length]
        return Pair(self.encode_source(source), target_ids, source, target)


def _size(pair: Pair) -> int:
    return len(pair.source_ids) + len(pair.target_ids)
