"""Language modeling: an honest split, each target exactly once, and bits per byte as computed by hand in float64."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_models.errors import DataError
from agfl_models.examples import TextRow
from agfl_models.model.model import AutoGenModel
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.language_modeling import (
    LanguageModeling,
    LanguageModelingConfig,
    TokenBatch,
    TokenStream,
)
from agfl_models.tokenizers.tokenizer import Tokenizer

BOS, EOS = 256, 257
BYTES = Tokenizer()
TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=12)
FRACTION = st.sampled_from([0.0, 0.1, 0.25, 0.5])


def task(length: int = 8, fraction: float = 0.25, tokenizer: Tokenizer = BYTES) -> LanguageModeling:
    config = LanguageModelingConfig(type="language_modeling", sequence_length=length, validation_fraction=fraction)
    return config.build(tokenizer)


def rows_of(texts: Iterable[str]) -> list[TextRow]:
    return [TextRow(text=text) for text in texts]


def pairs(batches: Iterable[TokenBatch]) -> Counter[tuple[int, int]]:
    """Count (input, target) of all predictions."""
    found: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        assert batch.inputs.shape == batch.targets.shape
        real = batch.targets >= 0
        found.update(zip(batch.inputs[real].tolist(), batch.targets[real].tolist(), strict=True))
    return found


def neighbors(stream: NDArray[np.int32]) -> Counter[tuple[int, int]]:
    """What there is to predict: each token from the one before it, but no document's beginning."""
    tokens = stream.tolist()
    return Counter((a, b) for a, b in itertools.pairwise(tokens) if b != BOS)


@pytest.mark.parametrize("fraction", [0.51, 0.9])
def test_only_document_is_trained_on(fraction: float) -> None:
    text = task(fraction=fraction).prepare(rows_of(["the only one"]))
    assert text.sample(2, np.random.default_rng(0)).targets.shape == (2, 8)


def test_stream_is_bos_bytes_eos() -> None:
    text = task(fraction=0.0).prepare(rows_of(["aé", "b"]))
    assert text.train.tolist() == [BOS, 0x61, 0xC3, 0xA9, EOS, BOS, 0x62, EOS]
    assert text.held_out.size == 0


@given(
    st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_epoch_and_validation_predict_each_target_exactly_once(
    texts: list[str], length: int, batch_size: int, seed: int
) -> None:
    text = task(length).prepare(rows_of(texts))
    batches = list(text.epoch(batch_size, np.random.default_rng(seed)))
    assert pairs(batches) == neighbors(text.train)
    assert all(len(batch.inputs) <= batch_size for batch in batches)
    assert pairs(text.validation(batch_size, 1000)) == neighbors(text.held_out)
    for windows in (1, 2):
        short = list(text.validation(batch_size, windows))
        assert sum(len(batch.inputs) for batch in short) <= windows
        assert pairs(short) == neighbors(text.held_out[: windows * length + 1])


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=8), st.integers(1, 40))
def test_sampled_windows_are_pieces_of_the_text(texts: list[str], length: int) -> None:
    text = task(length, 0.0).prepare(rows_of(texts))
    batch = text.sample(20, np.random.default_rng(0))
    assert pairs([batch]).keys() <= neighbors(text.train).keys()
    whole = text.train.astype(np.int64)
    for inputs in batch.inputs.numpy():
        starts = range(max(whole.size - length, 1))
        assert any(np.array_equal(whole[s : s + length], inputs[: whole.size - s]) for s in starts)


def test_every_offset_is_drawn_as_often() -> None:
    tokens = np.arange(40, dtype=np.int32)
    text = TokenStream(tokens, tokens, 8, bos_id=256, eos_id=257)
    starts = text.sample(6400, np.random.default_rng(0)).inputs[:, 0].numpy()
    counts = np.bincount(starts, minlength=32)
    assert counts.size == 32, "the last window ends at the last token"
    assert (abs(counts - 200) < 5 * np.sqrt(200)).all()


@given(
    st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(0, 2**32),
)
def test_drawn_validation_is_pieces_of_the_held_out_text(
    texts: list[str], length: int, num_examples: int, seed: int
) -> None:
    text = task(length, 0.25).prepare(rows_of(texts))
    batches = list(text.sample_validation(7, num_examples, np.random.default_rng(seed)))
    assert sum(len(batch.inputs) for batch in batches) == (num_examples if text.held_out.size else 0)
    assert all(len(batch.inputs) <= 7 for batch in batches)
    assert pairs(batches).keys() <= neighbors(text.held_out).keys()


@pytest.mark.parametrize("size", [2, 3, 8, 9, 12, 16, 40])
def test_every_offset_of_held_out_text_is_drawn_and_short_text_is_not_drawn_alike(size: int) -> None:
    tokens = np.arange(size, dtype=np.int32)
    text = TokenStream(tokens, tokens, 8, bos_id=256, eos_id=257)
    (batch,) = text.sample_validation(6400, 6400, np.random.default_rng(0))
    counts = np.bincount(batch.inputs[:, 0].numpy())
    assert counts.size == max(size - 8, min(size - 1, 8))
    assert (abs(counts - 6400 / counts.size) < 5 * np.sqrt(6400 / counts.size)).all()
    if size >= 16:
        assert (batch.targets >= 0).all(), "the size does not show in how much is predicted"
    assert (batch.targets >= 0).any(dim=1).all()


def test_bits_per_byte_is_what_float64_says() -> None:
    modeling = task(length=7, fraction=0.4)
    text = modeling.prepare(rows_of(["the first document", "the second, with é", "a third", "fourth"]))
    model = AutoGenModel({"vocab_size": 259, "dim": 8, "layers": [{"type": "attention", "num_heads": 2}]}, seed=0)
    sums = dict.fromkeys(modeling.eval_sums, 0.0)
    with torch.no_grad():
        for batch in text.validation(3, 1000):
            for name, value in modeling.evaluate(model, batch).items():
                sums[name] += value
        exact = model.double()
        tokens, nats, predicted, num_bytes = text.held_out.astype(np.int64), 0.0, 0, 0
        for start in range(0, tokens.size - 1, 7):
            window = tokens[start : start + 8]
            logits = exact(torch.from_numpy(window[None, :-1]))[0].numpy()
            for row, target in zip(logits, window[1:].tolist(), strict=True):
                if target != BOS:
                    nats -= row[target] - math.log(np.exp(row).sum())
                    predicted += 1
                    num_bytes += target < 256
    assert (sums["eval/tokens"], sums["eval/bytes"]) == (predicted, num_bytes)
    metrics = modeling.eval_metrics(sums)
    assert metrics["eval/bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert metrics["eval/loss"] == pytest.approx(nats / predicted, rel=1e-5)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(nats / predicted), rel=1e-4)


def test_bits_are_a_byte_whatever_the_tokens() -> None:
    """A model that says nothing takes log2(V) bits a token; a byte costs that times tokens by bytes, ends included."""
    texts = ["the thé the", "see the thé"]
    tokenizer = Tokenizer([(0x65, 0x20), (0xC3, 0xA9), (0x74, 0x68)])
    modeling = task(length=7, fraction=0.5, tokenizer=tokenizer)
    prepared = modeling.prepare(rows_of(texts))
    ((_,), (row,)) = split_rows(rows_of(texts), 0.5)
    held_out = row.text
    ids = tokenizer.encode(held_out)
    assert prepared.held_out.tolist() == [BOS, *ids, EOS]
    model = AutoGenModel({"vocab_size": 262, "dim": 8, "layers": [{"type": "ff"}]}, seed=0)
    assert model.embedding is not None
    torch.nn.init.zeros_(model.embedding.weight)
    sums = dict.fromkeys(modeling.eval_sums, 0.0)
    with torch.no_grad():
        for batch in prepared.validation(2, 1000):
            for name, value in modeling.evaluate(model, batch).items():
                sums[name] += value
    assert (sums["eval/tokens"], sums["eval/bytes"]) == (len(ids) + 1, len(held_out.encode()))
    expected = math.log2(262) * (len(ids) + 1) / len(held_out.encode())
    assert modeling.eval_metrics(sums)["eval/bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_begin_is_not_predicted_and_end_is_no_byte() -> None:
    modeling = task(length=20, fraction=0.0)
    text = modeling.prepare(rows_of(["ab", "cd"]))
    model = AutoGenModel({"vocab_size": 259, "dim": 4, "layers": [{"type": "ff"}]}, seed=0)
    with torch.no_grad():
        sums = modeling.evaluate(model, next(text.epoch(1, np.random.default_rng(0))))
    assert (sums["eval/tokens"], sums["eval/bytes"]) == (6, 4)


def test_nothing_held_out_means_no_metrics() -> None:
    text = task(fraction=0.0).prepare(rows_of(["abc"]))
    assert list(text.validation(4, 10)) == []
    assert task().eval_metrics(dict.fromkeys(task().eval_sums, 0.0)) == {}


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_no_text_is_refused(documents: list[str]) -> None:
    with pytest.raises(DataError, match="data: must hold at least one document with text, got none"):
        task().prepare(rows_of(documents))
