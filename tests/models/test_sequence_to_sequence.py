"""Translation and summarization: loss and scores as computed by hand, whoever holds the examples in which batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agfl_models.errors import DataError
from agfl_models.examples import Row
from agfl_models.metrics import bleu, chrf, rouge
from agfl_models.model.config import ModelConfig
from agfl_models.model.generation import GenerationConfig
from agfl_models.model.model import AutoGenModel
from agfl_models.tasks.dataset import ExampleDataset, split_rows
from agfl_models.tasks.sequence_to_sequence import Pair, PairBatch, SequenceToSequence
from agfl_models.tasks.summarization import SummarizationConfig, SummaryRow
from agfl_models.tasks.translation import TranslationConfig, TranslationRow
from agfl_models.tokenizers.tokenizer import Tokenizer
from agfl_models.validation import validate

BOS, EOS, PAD = 256, 257, 258
MODEL = {
    "family": "encoder_decoder",
    "vocab_size": 262,
    "dim": 16,
    "encoder": {"layers": [{"type": "attention", "num_heads": 2}, {"type": "ff"}]},
    "layers": [{"type": "attention", "num_heads": 2}, {"type": "attention", "cross": True, "num_heads": 2}],
}
TOKENIZER = Tokenizer([(0x65, 0x6E), (0xC3, 0xA4), (0x20, 0x64)])
TEXTS = ["the door", "open the old door", "close it", "a red door is open", "who is there", "tür", "an open end here"]
ROWS = [TranslationRow(source=text, target=text.replace("door", "Tür").replace("e", "ä")) for text in TEXTS]


def translation(**settings: Any) -> SequenceToSequence:
    return validate(TranslationConfig, {"type": "translation", "validation_fraction": 0.0, **settings}, "task").build(
        TOKENIZER
    )


def summarization(**settings: Any) -> SequenceToSequence:
    return validate(
        SummarizationConfig, {"type": "summarization", "validation_fraction": 0.0, **settings}, "task"
    ).build(TOKENIZER)


def sums_of(task: SequenceToSequence, model: AutoGenModel, batches: Sequence[PairBatch]) -> dict[str, float]:
    sums = dict.fromkeys(task.eval_sums, 0.0)
    with torch.no_grad():
        for batch in batches:
            for name, value in task.evaluate(model, batch).items():
                sums[name] += value
    return sums


def held_out(task: SequenceToSequence, rows: Sequence[Row]) -> ExampleDataset[Pair, PairBatch]:
    """All rows as validation examples."""
    train = task.prepare(rows).train
    assert len(train) == len(rows)
    return ExampleDataset(train, train, task.collate, task.prepare(rows).size)


@pytest.fixture
def model() -> AutoGenModel:
    return AutoGenModel(MODEL, seed=3).eval()


def test_batch_is_source_eos_and_bos_target_eos() -> None:
    task = translation(source_length=6, target_length=5)
    short, long = task.prepare([TranslationRow(source="ab", target="c"), ROWS[1]]).train
    batch = task.collate([short, long])
    assert batch.source.tolist() == [[0x61, 0x62, EOS, PAD, PAD, PAD], [*b"op", 259, *b" t", EOS]]
    assert batch.source_mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert batch.inputs.tolist() == [[BOS, 0x63, PAD, PAD, PAD], [BOS, *b"op", 260, 0x6E]]
    assert batch.targets.tolist() == [[0x63, EOS, -100, -100, -100], [*b"op", 260, 0x6E, 0x20]]
    assert batch.texts == (("ab", "c"), (ROWS[1].source, ROWS[1].target))


def test_target_that_is_cut_has_no_end_to_learn() -> None:
    for length, ids in ((3, [0x61, 0x62, EOS]), (2, [0x61, 0x62]), (1, [0x61])):
        (pair,) = translation(target_length=length).prepare([TranslationRow(source="x", target="ab")]).train
        assert pair.target_ids == ids
    for length, ids in ((3, [0x61, 0x62, EOS]), (2, [0x61, EOS]), (1, [EOS])):
        assert translation(source_length=length).encode_source("ab") == ids


def test_loss_is_what_float64_says_of_one_example(model: AutoGenModel) -> None:
    task = translation()
    pairs = held_out(task, ROWS).train
    with torch.no_grad():
        nll, tokens = task.loss(model, task.collate(pairs))
        exact, by_hand, count = AutoGenModel(MODEL, seed=3).eval().double(), 0.0, 0
        for row in ROWS:
            ids = [BOS, *TOKENIZER.encode(row.target), EOS]
            source = torch.tensor([[*TOKENIZER.encode(row.source), EOS]])
            logits = exact(torch.tensor([ids[:-1]]), source=source)[0].numpy()
            for position, target in zip(logits, ids[1:], strict=True):
                by_hand -= position[target] - math.log(np.exp(position).sum())
                count += 1
    assert tokens == count
    assert float(nll) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_are_those_of_what_the_model_writes(model: AutoGenModel, num_beams: int) -> None:
    task = translation(num_beams=num_beams, target_length=12)
    dataset = held_out(task, ROWS)
    config = GenerationConfig(max_new_tokens=12, num_beams=num_beams)
    written = []
    for pair in dataset.train:  # one at a time, without padding
        batch = task.collate([pair])
        written += task.write(model, batch.source, batch.source_mask, config)
    assert any(written)
    metrics = task.eval_metrics(sums_of(task, model, list(dataset.validation(3, 100))))
    references = [row.target for row in ROWS]
    assert metrics["eval/bleu"] == bleu.bleu_scores(bleu.bleu_sums(written, references))["eval/bleu"]
    assert metrics["eval/chrf"] == chrf.chrf_scores(chrf.chrf_sums(written, references))["eval/chrf"]
    long = [i for i, row in enumerate(ROWS) if len(row.source.split()) >= 4]
    assert 0 < len(long) < len(ROWS)
    on_long = bleu.bleu_sums([written[i] for i in long], [references[i] for i in long])
    assert metrics["eval/bleu_long"] == bleu.bleu_scores(on_long)["eval/bleu"]


class Copier(AutoGenModel):
    """A model that writes its source: what is right for a task whose targets are the sources."""

    def encode(self, source_BS: torch.Tensor, source_mask_BS: torch.Tensor | None = None) -> Any:
        self.source = source_BS
        self.position = 0
        return super().encode(source_BS, source_mask_BS)

    def step(self, x: Any, state: Any) -> Any:
        logits, state = super().step(x, state)
        place = min(self.position, self.source.shape[1] - 1)
        self.position += 1
        wanted = self.source[: len(logits), place]
        return torch.nn.functional.one_hot(wanted, logits.shape[-1]).float(), state


@pytest.mark.parametrize("kind", ["translation", "summarization"])
def test_perfect_model_scores_100(kind: str) -> None:
    same = ["open the old red door", "close the old green door now", "who is at the back door"]
    model = Copier(MODEL, seed=0).eval()
    rows: list[Row] = []
    if kind == "translation":
        task = translation()
        names: tuple[str, ...] = ("eval/bleu", "eval/chrf", "eval/bleu_long")
        rows += [TranslationRow(source=text, target=text) for text in same]
    else:
        task, names = summarization(), rouge.SCORES
        rows += [SummaryRow(document=text, summary=text) for text in same]
    metrics = task.eval_metrics(sums_of(task, model, list(held_out(task, rows).validation(1, 100))))
    assert {name: metrics[name] for name in names} == pytest.approx(dict.fromkeys(names, 100.0))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_evaluation_does_not_depend_on_the_batches(model: AutoGenModel, batch_size: int) -> None:
    task = translation(target_length=12)
    dataset = held_out(task, ROWS)
    sums = sums_of(task, model, list(dataset.validation(batch_size, 100)))
    assert sums == pytest.approx(sums_of(task, model, list(dataset.validation(3, 100))), rel=1e-6)


def test_sums_of_owners_are_those_of_all_their_examples(model: AutoGenModel) -> None:
    task = translation(target_length=12)
    owners = [held_out(task, rows) for rows in (ROWS[:2], ROWS[2:3], ROWS[3:])]
    parts = [sums_of(task, model, list(owner.validation(2, 100))) for owner in owners]
    whole = sums_of(task, model, list(held_out(task, ROWS).validation(100, 100)))
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole, rel=1e-6)


def test_names_of_sums_and_metrics_are_kept(model: AutoGenModel) -> None:
    for task in (translation(target_length=4), summarization(target_length=4)):
        row: Row = (
            TranslationRow(source="a b c d", target="b")
            if task.score.sum_names[0] in bleu.NAMES
            else SummaryRow(document="a", summary="b")
        )
        batch = task.collate(task.prepare([row]).train)
        with torch.no_grad():
            sums = task.evaluate(model, batch)
        assert sums.keys() <= set(task.eval_sums)
        assert len(set(task.eval_sums)) == len(task.eval_sums)
        all_sums = dict.fromkeys(task.eval_sums, 0.0) | sums
        metrics = {**task.train_metrics(dict.fromkeys(task.train_sums, 1.0)), **task.eval_metrics(all_sums)}
        assert {*metrics, "eval/worst_decile"} == set(task.metrics)
        assert task.main_metric.name in metrics
        assert task.eval_metrics(dict.fromkeys(task.eval_sums, 0.0)) == {}, "nothing is held out"


def test_prepared_splits_share_no_source() -> None:
    rows = ROWS + [TranslationRow(source=row.source, target="another") for row in ROWS]
    dataset = translation(validation_fraction=0.3).prepare(rows)
    assert dataset.held_out
    assert not {pair.source for pair in dataset.train} & {pair.source for pair in dataset.held_out}
    train, _ = split_rows(rows, 0.3)
    assert [pair.target for pair in dataset.train] == [row.target for row in train]
    with pytest.raises(DataError, match=r"^data: .*AGFL-DATA-070"):
        translation().prepare([])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            {"family": "decoder", "encoder": None, "layers": [{"type": "ff"}]},
            "model.family must be encoder_decoder for",
        ),
        (
            {"family": "encoder", "encoder": None, "layers": [{"type": "ff"}], "head": {"type": "span"}},
            "model.family must be encoder_decoder for task translation, got encoder",
        ),
    ],
)
def test_model_of_another_kind_is_refused(change: dict[str, Any], rule: str) -> None:
    config = TranslationConfig(type="translation")
    config.check_model(ModelConfig.model_validate(MODEL))
    with pytest.raises(ValueError, match=rule):
        config.check_model(ModelConfig.model_validate({**MODEL, **change}))
