"""Question answering: windows that miss nothing, the best span there is, and loss and scores as computed by hand."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agfl_models.errors import DataError
from agfl_models.model.config import ModelConfig
from agfl_models.model.model import AutoGenModel
from agfl_models.tasks.dataset import ExampleDataset
from agfl_models.tasks.question_answering import (
    Example,
    Found,
    QuestionAnswering,
    QuestionAnsweringConfig,
    QuestionRow,
    SpanBatch,
)
from agfl_models.tasks.spans import CONTEXT as OTHER
from agfl_models.tasks.spans import NO_ANSWER, QUESTION, SHARED, Span, Window, windows_on
from agfl_models.tokenizers.tokenizer import Tokenizer
from agfl_models.validation import validate

BOS, EOS, PAD = 256, 257, 258
MODEL = {
    "family": "encoder",
    "vocab_size": 262,
    "dim": 16,
    "head": {"type": "span"},
    "layers": [{"type": "attention", "num_heads": 2}, {"type": "ff"}],
}
TOKENIZER = Tokenizer([(0x20, 0x74), (0x74, 0x69), (0xC3, 0xA4)])  # " t", "ti", "ä"
CONTEXT = "The tide turns at six. Later the tidal wave täkes the pier by the old harbor."


def row(question: str, answers: object, context: str = CONTEXT) -> QuestionRow:
    return QuestionRow.model_validate({"context": context, "question": question, "answers": answers})


ROWS = [
    row("When does the tide turn?", "six"),
    row("What takes the pier?", {"text": ["the tidal wave", "tidal wave"]}),
    row("Who?", ""),
    row("What does the wave do?", "täkes the pier"),
    row("What is short?", "All of it", "All of it."),
]


def question_answering(**settings: Any) -> QuestionAnswering:
    content = {"type": "question_answering", "validation_fraction": 0.0, **settings}
    return validate(QuestionAnsweringConfig, content, "task").build(TOKENIZER)


def held_out(task: QuestionAnswering, rows: Sequence[QuestionRow]) -> ExampleDataset[Example, SpanBatch]:
    examples = [task.example(row) for row in rows]
    return ExampleDataset(examples, examples, task.collate, lambda example: len(example.windows[0].ids))


def sums_of(task: QuestionAnswering, model: Any, batches: Sequence[SpanBatch]) -> dict[str, float]:
    sums = dict.fromkeys(task.eval_sums, 0.0)
    with torch.no_grad():
        for batch in batches:
            for name, value in task.evaluate(model, batch).items():
                sums[name] += value
    return sums


@pytest.fixture
def model() -> AutoGenModel:
    return AutoGenModel(MODEL, seed=3).eval()


@given(
    st.text(st.characters(codec="utf-8"), max_size=40), st.text("tide ä", min_size=1, max_size=80), st.integers(8, 40)
)
def test_windows_cover_the_context_and_overlap_by_half(question: str, context: str, length: int) -> None:
    windows = list(windows_on(question, context, length, TOKENIZER))
    ids, spans = TOKENIZER.encode_with_offsets(context)
    room = length - windows[0].offset - 1
    assert room >= length // 2 - 1
    covered: list[tuple[int, int]] = []
    for i, window in enumerate(windows):
        part = window.ids[window.offset : -1]
        assert len(window.ids) <= length
        assert (window.ids[0], window.ids[window.offset - 1], window.ids[-1]) == (BOS, EOS, EOS)
        assert (part, window.spans) == (ids[i * (room // 2) :][:room], spans[i * (room // 2) :][:room])
        covered += window.spans[0 if i == 0 else room - room // 2 :]
    assert covered == spans
    assert len(windows) == 1 or len(windows[-2].spans) == room, "only the last one is short"


@given(st.text("tide ä", max_size=20), st.text("tide ä", min_size=1, max_size=80), st.integers(8, 40))
def test_types_say_which_tokens_question_and_context_share(question: str, context: str, length: int) -> None:
    for window in windows_on(question, context, length, TOKENIZER):
        asked = window.ids[1 : window.offset - 1]
        assert window.types[: window.offset] == [QUESTION] * (len(asked) + 2)
        for token, kind in zip(window.ids[window.offset :], window.types[window.offset :], strict=True):
            assert kind == (SHARED if token in asked else OTHER)


def test_small_model_learns_which_word_is_asked_for() -> None:
    """Each context says what four words mean; only the question tells which meaning is the answer."""
    rng = np.random.default_rng(0)

    def asked() -> QuestionRow:
        words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(4)]
        meanings = ["".join(rng.choice(list("mnopqrs"), 4)) for _ in range(4)]
        context = " ".join(f"{word}:{meaning}." for word, meaning in zip(words, meanings, strict=True))
        which = int(rng.integers(4))
        return row(words[which], {"text": [meanings[which]], "answer_start": [10 * which + 4]}, context)

    task = question_answering(context_length=64)
    rnn = {"type": "rnn", "cell": "gru"}
    model = AutoGenModel(
        {**MODEL, "type_vocab_size": 3, "dim": 32, "layers": [rnn, {"type": "attention", "num_heads": 2}, rnn]}, seed=3
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        nll, count = task.loss(model, task.collate([task.example(asked()) for _ in range(16)]))
        optimizer.zero_grad()
        torch.autograd.backward(nll / count)
        optimizer.step()
    (batch,) = held_out(task, [asked() for _ in range(100)]).validation(100, 100)
    metrics = task.eval_metrics(sums_of(task, model, [batch]))
    assert metrics["eval/exact_match"] > 80, "to guess one of four meanings gets a quarter right"


def test_batch_is_windows_with_one_target_an_example() -> None:
    task = question_answering(context_length=24)
    batch = task.collate([task.example(row("q", "b", "a bc")), task.example(ROWS[0])])
    first = [BOS, 0x71, EOS, 0x61, 0x20, 0x62, 0x63, EOS]
    assert batch.ids[0].tolist() == first + [PAD] * (24 - len(first))
    assert batch.mask[0].tolist() == [True] * len(first) + [False] * (24 - len(first))
    assert batch.types[0].tolist() == [QUESTION] * 3 + [OTHER] * 5 + [QUESTION] * (24 - len(first))
    assert batch.targets[0].tolist() == [5, 5]
    windows = [(window, target) for window, target in zip(batch.ids[1:], batch.targets[1:], strict=True)]
    assert len(windows) > 2
    learned = [(ids, target) for ids, target in windows if target[0] != -100]
    ((ids, (start, end)),) = learned
    assert TOKENIZER.decode(ids[int(start) : int(end) + 1].tolist()) == "six"
    assert not torch.equal(ids, windows[0][0]), "the first window does not reach as far"


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 4), st.integers(1, 12))
def test_best_span_is_that_of_exhaustive_search(seed: int, size: int, offset: int, max_length: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(offset + size + 1, 2)))
    window = Window([0] * (offset + size + 1), offset, [(i, i + 1) for i in range(size)])
    allowed = [
        (float(logits[i, 0] + logits[j, 1]), Span(i, j))
        for i, j in itertools.product(range(offset, offset + size), repeat=2)
        if i <= j < i + max_length
    ]
    assert window.best_span(logits, max_length) == max(allowed)


class Knowing:
    """A model that knows the answers: what it says of each window is handed to it beforehand."""

    def __init__(self, batch: SpanBatch, no_answer: float = 1.0) -> None:
        self.logits = torch.zeros(*batch.ids.shape, 2)
        self.logits[:, 0] = no_answer / 2
        for i, (start, end) in enumerate(batch.targets.tolist()):
            if start > 0:
                self.logits[i, start, 0] = self.logits[i, end, 1] = 10.0

    def __call__(self, ids: Tensor, mask: Tensor, types_BT: Tensor) -> Tensor:
        return self.logits


def texts(answers: list[Found]) -> list[str]:
    return [found.text for found in answers]


@pytest.mark.parametrize("context_length", [48, 200])
def test_perfect_model_answers_everything_right(context_length: int) -> None:
    task = question_answering(context_length=context_length)
    (batch,) = held_out(task, ROWS).validation(100, 100)
    metrics = task.eval_metrics(sums_of(task, Knowing(batch), [batch]))
    assert (metrics["eval/exact_match"], metrics["eval/f1"]) == (100.0, 100.0)


def test_no_answer_is_held_against_the_best_span() -> None:
    task = question_answering()
    (batch,) = held_out(task, ROWS[:1]).validation(100, 100)
    for no_answer, expected in ((19.9, "six"), (20.1, "")):
        knowing: Any = Knowing(batch, no_answer)
        assert texts(task.answer(knowing, batch)) == [expected]
    no_span: Any = Knowing(task.collate([task.example(ROWS[2])]), -1.0)
    assert texts(task.answer(no_span, task.collate([task.example(ROWS[2])]))) != [""]


def test_lowest_no_answer_score_of_all_windows_counts() -> None:
    task = question_answering(context_length=24)
    batch = task.collate([task.example(ROWS[0])])
    knowing: Any = Knowing(batch)
    (learned,) = [i for i, (start, _) in enumerate(batch.targets.tolist()) if start > 0]
    others = [i for i in range(len(batch.ids)) if i != learned]
    knowing.logits[others, 0] = 50.0
    assert texts(task.answer(knowing, batch)) == ["six"], "windows without the answer say so, and should"
    knowing.logits[learned, 0] = 50.0
    assert texts(task.answer(knowing, batch)) == [""]


@pytest.mark.parametrize("max_answer_length", [1, 2, 14])
def test_found_answer_is_no_longer_than_allowed(max_answer_length: int) -> None:
    task = question_answering(max_answer_length=max_answer_length)
    batch = task.collate([task.example(ROWS[1])])
    knowing: Any = Knowing(batch, -1.0)
    (answer,) = texts(task.answer(knowing, batch))
    tokens = len(TOKENIZER.encode(answer))
    assert tokens <= max_answer_length
    assert (answer == "the tidal wave") == (max_answer_length == 14)


def test_loss_is_what_float64_says_of_one_example(model: AutoGenModel) -> None:
    task = question_answering()
    with torch.no_grad():
        nll, count = task.loss(model, task.collate([task.example(row) for row in ROWS]))
        exact, by_hand = AutoGenModel(MODEL, seed=3).eval().double(), 0.0
        for row in ROWS:
            prefix = [BOS, *TOKENIZER.encode(row.question), EOS]
            ids, spans = TOKENIZER.encode_with_offsets(row.context)
            logits = exact(torch.tensor([[*prefix, *ids, EOS]]))[0].numpy()
            positions = [0, 0]
            if row.answers.text:
                left = row.context.index(row.answers.text[0])
                right = left + len(row.answers.text[0])
                inside = [i for i, (start, end) in enumerate(spans) if start < right and end > left]
                positions = [len(prefix) + inside[0], len(prefix) + inside[-1]]
            for kind, position in enumerate(positions):
                by_hand -= (logits[position, kind] - math.log(np.exp(logits[:, kind]).sum())) / 2
    assert count == len(ROWS)
    assert float(nll) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_evaluation_does_not_depend_on_the_batches(model: AutoGenModel, batch_size: int) -> None:
    task = question_answering(context_length=24)
    dataset = held_out(task, ROWS)
    sums = sums_of(task, model, list(dataset.validation(batch_size, 100)))
    assert sums == pytest.approx(sums_of(task, model, list(dataset.validation(3, 100))), rel=1e-6)
    assert sums["eval/span/count"] == len(ROWS)


def test_sums_of_owners_are_those_of_all_their_examples(model: AutoGenModel) -> None:
    task = question_answering()
    owners = [held_out(task, rows) for rows in (ROWS[:2], ROWS[2:3], ROWS[3:])]
    parts = [sums_of(task, model, list(owner.validation(2, 100))) for owner in owners]
    whole = sums_of(task, model, list(held_out(task, ROWS).validation(100, 100)))
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole, rel=1e-6)


def test_training_sees_the_window_with_the_answer_and_leaves_out_what_has_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = question_answering(context_length=48)
    long = row("What?", "The tide turns at six. Later the tidal wave täkes the pier")
    with caplog.at_level(logging.WARNING, "agfl.models"):
        dataset = task.prepare([*ROWS, long])
    assert caplog.messages == ["1 of 6 questions are left out: no window holds their whole answer"]
    assert len(dataset.train) == len(ROWS)
    for example in dataset.train:
        ((window,), (target,)) = example.windows, example.targets
        assert target is not None
        if target == NO_ANSWER:
            assert not example.row.answers.text
        else:
            place = window.characters(example.row.context, target)
            assert example.row.context[place] == example.row.answers.text[0]
    with pytest.raises(
        DataError,
        match=r"^data: must hold at least one question whose answer fits .* = 48, got none of 1.*AGFL-DATA-069",
    ):
        task.prepare([long])


def test_answer_that_no_window_holds_counts_in_the_scores_but_not_in_the_loss(model: AutoGenModel) -> None:
    task = question_answering(context_length=48)
    long = row("What?", "The tide turns at six. Later the tidal wave täkes the pier")
    sums = sums_of(task, model, list(held_out(task, [long]).validation(1, 1)))
    assert (sums["eval/examples"], sums["eval/nll"], sums["eval/span/count"]) == (0, 0, 1)
    assert "eval/loss" not in task.eval_metrics(sums)
    assert "eval/f1" in task.eval_metrics(sums)


def test_questions_on_one_context_stay_on_one_side() -> None:
    rows = [row(f"question {j}", "a", f"a context {i}") for i in range(40) for j in range(3)]
    dataset = question_answering(validation_fraction=0.3).prepare(rows)
    sides = [{example.row.context for example in side} for side in (dataset.train, dataset.held_out)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert len(dataset.train) + len(dataset.held_out) == len(rows)


def test_names_of_sums_and_metrics_are_kept(model: AutoGenModel) -> None:
    task = question_answering()
    sums = sums_of(task, model, list(held_out(task, ROWS).validation(9, 9)))
    assert sums.keys() == set(task.eval_sums)
    metrics = {**task.train_metrics(dict.fromkeys(task.train_sums, 1.0)), **task.eval_metrics(sums)}
    assert {*metrics, "eval/worst_decile"} == set(task.metrics)
    assert task.main_metric.name in metrics
    assert task.eval_metrics(dict.fromkeys(task.eval_sums, 0.0)) == {}, "nothing is held out"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"family": "decoder", "head": None}, "model.family must be encoder for task question_answering, got decoder"),
        ({"head": None}, "model.head must be span for task question_answering, got none"),
        ({"head": {"type": "classification", "num_classes": 2}}, "model.head must be span for .*, got classification"),
    ],
)
def test_model_of_another_kind_is_refused(change: dict[str, Any], rule: str) -> None:
    config = QuestionAnsweringConfig(type="question_answering")
    config.check_model(ModelConfig.model_validate(MODEL))
    with pytest.raises(ValueError, match=rule):
        config.check_model(ModelConfig.model_validate({**MODEL, **change}))
