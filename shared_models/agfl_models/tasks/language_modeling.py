"""Causal language modeling: perplexity, and bits per byte, which no choice of tokenizer can change.

Legend: B batch, T sequence length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agfl_models.bounded import Length
from agfl_models.errors import DataError
from agfl_models.examples import Row, TextRow
from agfl_models.layers.layer import at_least_float32
from agfl_models.model.families import AnyModelConfig
from agfl_models.tasks import distribution
from agfl_models.tasks.config import TASKS, TextTaskConfig
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.task import IGNORED, MainMetric, check_kind
from agfl_models.tokenizers.tokenizer import TextTokenizer

MAIN_METRIC = MainMetric("eval/bits_per_byte", "bits per byte", 0.0, 8.0, higher_is_better=False)


@TASKS.register
class LanguageModelingConfig(TextTaskConfig):
    """Language modeling.

    sequence_length: T, in tokens; documents are joined and cut into windows of that length.
    """

    row: ClassVar[type[Row]] = TextRow
    main_metric: ClassVar[MainMetric] = MAIN_METRIC
    command: ClassVar[str] = "generate"

    type: Literal["language_modeling"]
    sequence_length: Length = 128

    @property
    def max_predictions(self) -> int:
        """Most predictions of one example."""
        return self.sequence_length

    @property
    def context_length(self) -> int:
        """Most tokens that attention looks at."""
        return self.sequence_length

    def check_model(self, model: AnyModelConfig) -> None:
        """Raise BrokenRule unless `model` predicts the next token."""
        check_kind(model, self.type, "decoder", "language_model")

    def build(self, tokenizer: TextTokenizer) -> LanguageModeling:
        """Return the task."""
        return LanguageModeling(self, tokenizer)


@dataclass(frozen=True)
class TokenBatch:
    """inputs: int64 (B, T); targets: int64 (B, T), `IGNORED` where nothing is to be predicted."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: str) -> TokenBatch:
        """Return the batch on `device`."""
        return TokenBatch(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class TokenStream:
    """One owner's text as two token streams, int32: each document is BOS, its tokens, EOS."""

    train: NDArray[np.int32]
    held_out: NDArray[np.int32]
    sequence_length: int
    bos_id: int
    eos_id: int

    def sample(self, batch_size: int, rng: np.random.Generator) -> TokenBatch:
        """Return `batch_size` windows at uniform offsets, drawn with replacement."""
        last = max(self.train.size - self.sequence_length - 1, 0)
        return self._windows(self.train, rng.integers(0, last + 1, batch_size))

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[TokenBatch]:
        """Yield disjoint windows that cover the training stream once, in random order."""
        starts = rng.permutation(np.arange(0, max(self.train.size - 1, 1), self.sequence_length))
        for i in range(0, starts.size, batch_size):
            yield self._windows(self.train, starts[i : i + batch_size])

    def validation(self, batch_size: int, max_examples: int) -> Iterator[TokenBatch]:
        """Yield disjoint windows of the held-out stream, in order; nothing where nothing is held out."""
        starts = np.arange(0, max(self.held_out.size - 1, 0), self.sequence_length)[:max_examples]
        for i in range(0, starts.size, batch_size):
            yield self._windows(self.held_out, starts[i : i + batch_size])

    def sample_validation(self, batch_size: int, num_examples: int, rng: np.random.Generator) -> Iterator[TokenBatch]:
        """Yield `num_examples` windows of the held-out stream at uniform offsets; nothing where nothing is held out.

        Of a stream shorter than two windows they may reach past its end: else they would be all alike, and their loss
        the exact one of this owner.
        """
        size, length = self.held_out.size, self.sequence_length
        if size < 2:
            return
        starts = rng.integers(0, max(size - length, min(size - 1, length)), num_examples)
        for i in range(0, num_examples, batch_size):
            yield self._windows(self.held_out, starts[i : i + batch_size])

    def _windows(self, stream: NDArray[np.int32], starts: NDArray[np.int64]) -> TokenBatch:
        index = starts[:, None] + np.arange(self.sequence_length + 1)
        tokens = stream[np.minimum(index, stream.size - 1)].astype(np.int64)
        targets = tokens[:, 1:].copy()
        # Past the end there is nothing to predict; a document's BOS follows from the EOS before it.
        starts_document = (targets == self.bos_id) & (tokens[:, :-1] == self.eos_id)  # GPT-2 has one id for both
        targets[(index[:, 1:] >= stream.size) | starts_document] = IGNORED
        return TokenBatch(torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets))


@dataclass(frozen=True)
class LanguageModeling:
    """The task: cross entropy of the next token, reported in nats a token and in bits a byte."""

    config: LanguageModelingConfig
    tokenizer: TextTokenizer
    main_metric: MainMetric = MAIN_METRIC
    train_sums: tuple[str, ...] = ("train/nll", "train/tokens")
    eval_sums: tuple[str, ...] = ("eval/nll", "eval/tokens", "eval/bytes", *distribution.BINS)
    metrics: tuple[str, ...] = (
        "train/loss",
        "eval/loss",
        "eval/perplexity",
        "eval/bits_per_byte",
        distribution.WORST_DECILE,
    )

    def prepare(self, rows: Sequence[TextRow]) -> TokenStream:
        """Split by document (equal documents stay on one side) and concatenate.

        Raises:
            DataError: there is no text at all.
        """
        train, held_out = split_rows(_with_text(rows), self.config.validation_fraction)
        return self._token_stream(train, held_out)

    def hold_out(self, rows: Sequence[TextRow]) -> TokenStream:
        """Concatenate all documents to evaluate on; raises DataError as `prepare`."""
        return self._token_stream([], _with_text(rows))

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
        """Return (negative log-likelihood in nats summed over targets, number of targets)."""
        return self.summed_loss(model, batch), self.num_predictions(batch)

    def summed_loss(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """As of `SplitLoss`."""
        logits_NV = at_least_float32(model(batch.inputs).flatten(0, 1))
        return F.cross_entropy(logits_NV, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def num_predictions(self, batch: TokenBatch) -> int:
        """As of `SplitLoss`."""
        return int((batch.targets != IGNORED).sum())

    def evaluate(self, model: nn.Module, batch: TokenBatch) -> dict[str, float]:
        """Return nll, number of targets and number of bytes in them (EOS is a target but no byte)."""
        nll, tokens = self.loss(model, batch)
        targets = batch.targets[batch.targets != IGNORED].cpu().numpy()
        num_bytes = float(self._num_bytes_V[targets].sum())
        return {"eval/nll": float(nll), "eval/tokens": float(tokens), "eval/bytes": num_bytes}

    def train_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean training loss in nats a token."""
        return {"train/loss": sums["train/nll"] / max(sums["train/tokens"], 1.0)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats a token), perplexity and bits per byte; nothing where no owner held text out."""
        if sums["eval/bytes"] == 0:
            return {}
        loss = sums["eval/nll"] / sums["eval/tokens"]
        return {
            "eval/loss": loss,
            "eval/perplexity": math.exp(min(loss, 700.0)),
            "eval/bits_per_byte": sums["eval/nll"] / math.log(2) / sums["eval/bytes"],
            **distribution.worst_decile(self.main_metric, sums),
        }

    @cached_property
    def _num_bytes_V(self) -> NDArray[np.int64]:
        return np.array([len(token) for token in self.tokenizer.token_bytes])

    def _stream(self, rows: Sequence[TextRow]) -> NDArray[np.int32]:
        bos_id, eos_id = self.tokenizer.bos_id, self.tokenizer.eos_id
        ids = [token for row in rows for token in (bos_id, *self.tokenizer.encode(row.text), eos_id)]
        return np.array(ids, np.int32)

    def _token_stream(self, train: Sequence[TextRow], held_out: Sequence[TextRow]) -> TokenStream:
        marks = self.tokenizer.bos_id, self.tokenizer.eos_id
        return TokenStream(self._stream(train), self._stream(held_out), self.config.sequence_length, *marks)


def _with_text(rows: Sequence[TextRow]) -> list[TextRow]:
    found = [row for row in rows if row.text.strip()]
    if not found:
        raise DataError("AGFL-DATA-067", "data: must hold at least one document with text, got none")
    return found
