"""Causal language modeling: perplexity and bits per byte.

Legend: B batch, T sequence length, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from agfl_models.config import ModelConfig
from agfl_models.errors import DataError
from agfl_models.tasks.task import Batch
from agfl_models.tokenizer import Tokenizer
from agfl_models.validation import Config

IGNORED = -100  # PyTorch's default ignore_index


class LanguageModelingConfig(Config):
    """Language modeling.

    sequence_length: T, in tokens; validation_fraction: share of an owner's documents held out.
    """

    type: Literal["language_modeling"]
    sequence_length: PositiveInt = 128
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)

    def check_model(self, model: ModelConfig) -> None:
        """Raise ValueError unless `model` maps token ids to logits (a model with a head is causal)."""
        if model.vocab_size is None:
            raise ValueError("model.vocab_size is required for task language_modeling, got None")

    def training_texts(self, documents: Sequence[str]) -> list[str]:
        """Return the text of an owner that is trained on: a tokenizer, too, may learn from nothing else."""
        return split_documents(documents, self.validation_fraction)[0]

    def build(self, tokenizer: Tokenizer) -> LanguageModeling:
        """Return the task."""
        return LanguageModeling(self, tokenizer)


@dataclass(frozen=True)
class ByteStream:
    """One owner's text as two token streams, uint16: each document is BOS, its tokens, EOS."""

    train: NDArray[np.uint16]
    held_out: NDArray[np.uint16]
    sequence_length: int

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """Return `batch_size` windows at uniform offsets, drawn with replacement."""
        last = max(self.train.size - self.sequence_length - 1, 0)
        return self._windows(self.train, rng.integers(0, last + 1, batch_size))

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield disjoint windows that cover the training stream once, in random order."""
        starts = rng.permutation(np.arange(0, max(self.train.size - 1, 1), self.sequence_length))
        for i in range(0, starts.size, batch_size):
            yield self._windows(self.train, starts[i : i + batch_size])

    def validation(self, batch_size: int, max_windows: int) -> Iterator[Batch]:
        """Yield disjoint windows of the held-out stream, in order; nothing where nothing is held out."""
        starts = np.arange(0, max(self.held_out.size - 1, 0), self.sequence_length)[:max_windows]
        for i in range(0, starts.size, batch_size):
            yield self._windows(self.held_out, starts[i : i + batch_size])

    def _windows(self, stream: NDArray[np.uint16], starts: NDArray[np.int64]) -> Batch:
        index = starts[:, None] + np.arange(self.sequence_length + 1)
        tokens = stream[np.minimum(index, stream.size - 1)].astype(np.int64)
        targets = tokens[:, 1:].copy()
        # Past the end there is nothing to predict; a document's BOS follows from the EOS before it.
        targets[(index[:, 1:] >= stream.size) | (targets == Tokenizer.bos_id)] = IGNORED
        return Batch(torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets))


@dataclass(frozen=True)
class LanguageModeling:
    """The task: next-token cross entropy, reported in nats a token and in bits a byte."""

    config: LanguageModelingConfig
    tokenizer: Tokenizer
    train_sums: tuple[str, ...] = ("train/nll", "train/tokens")
    eval_sums: tuple[str, ...] = ("eval/nll", "eval/tokens", "eval/bytes")
    metrics: tuple[str, ...] = ("train/loss", "eval/loss", "eval/perplexity", "eval/bits_per_byte")

    def prepare(self, documents: Sequence[str]) -> ByteStream:
        """Split by document (equal documents stay on one side) and concatenate.

        Raises:
            DataError: there is no text at all.
        """
        if not any(documents):
            raise DataError("corpus: must hold at least one document with text, got none")
        train, held_out = split_documents(documents, self.config.validation_fraction)
        return ByteStream(
            _stream(train, self.tokenizer), _stream(held_out, self.tokenizer), self.config.sequence_length
        )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return (negative log-likelihood in nats summed over targets, number of targets)."""
        logits_BTV = model(batch.inputs)
        nll = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return nll, int((batch.targets != IGNORED).sum())

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return nll, number of targets and number of bytes among them (EOS is a target but no byte)."""
        nll, tokens = self.loss(model, batch)
        num_bytes = int(self._num_bytes_V[batch.targets[batch.targets != IGNORED].cpu()].sum())
        return {"eval/nll": float(nll), "eval/tokens": float(tokens), "eval/bytes": float(num_bytes)}

    @cached_property
    def _num_bytes_V(self) -> Tensor:
        return torch.tensor([len(token) for token in self.tokenizer.token_bytes])

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
        }


def split_documents(documents: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Return (training, validation) documents, both in the given order.

    The documents with the smallest SHA-256 are held out, so the split depends on nothing but the text: at least one
    where there are two different ones, and equal documents never stand on both sides.
    """
    digests = [hashlib.sha256(text.encode()).digest() for text in documents]
    distinct = sorted(set(digests))
    count = round(fraction * len(distinct))
    if fraction > 0:
        count = min(max(count, 1), len(distinct) - 1)
    held_out = set(distinct[:count])
    pairs = list(zip(documents, digests, strict=True))
    return [t for t, d in pairs if d not in held_out], [t for t, d in pairs if d in held_out]


def _stream(documents: Sequence[str], tokenizer: Tokenizer) -> NDArray[np.uint16]:
    ids = [token for text in documents for token in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
    return np.array(ids, np.uint16)
