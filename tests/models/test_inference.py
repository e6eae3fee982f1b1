"""Using a model: the same text whole, in a batch and piece by piece, and the very text that evaluation scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agfl_models import AutoGenModel
from agfl_models.errors import ConfigError
from agfl_models.examples import Row, TextRow
from agfl_models.files.store import save_model
from agfl_models.inference import Answerer, Continuer, Rewriter, User, open_model
from agfl_models.metrics import span_overlap
from agfl_models.model.generation import GenerationConfig, generate
from agfl_models.tasks import question_answering
from agfl_models.tasks.evaluation import HeldOut, evaluate_rows, evaluation_sums
from agfl_models.tasks.question_answering import QuestionRow
from agfl_models.tasks.summarization import SummaryRow
from agfl_models.tasks.task import AnyTask
from agfl_models.tasks.translation import TranslationRow

TEXTS = ["the cat", "Grüße 😀 there", "x", "a text that is much longer than the model has learned to read"]
QUESTIONS = ["who?", "What was it?", "a question that is much longer than half of a window"]
CONTEXTS = [
    "the cat sat on the mat. It was a fine day, and a long one.",
    "Ships",
    "\n Grüße 😀 there, " * 8,
]
ROWS: dict[str, list[Row]] = {
    "generate": [TextRow(text=text) for text in TEXTS],
    "translate": [TranslationRow(source=text, target=text[::-1]) for text in TEXTS],
    "summarize": [SummaryRow(document=text, summary=text[:3]) for text in TEXTS],
    "answer": [
        QuestionRow.model_validate({"context": context, "question": question, "answers": answer})
        for context in CONTEXTS
        for question, answer in zip(QUESTIONS, (context[:2].strip(), context[-9:].strip(), ""), strict=True)
    ],
}
rewriting = pytest.mark.parametrize("command", ["translate", "summarize"])


@pytest.fixture(scope="module")
def users(model_folders: dict[str, Path]) -> dict[str, User]:
    return {command: open_model(str(folder))[0] for command, folder in model_folders.items()}


def rewriter_of(users: dict[str, User], command: str) -> Rewriter:
    user = users[command]
    assert isinstance(user, Rewriter)
    return user


@rewriting
@pytest.mark.parametrize("given", [{}, {"num_beams": 3, "length_penalty": 0.5}, {"num_beams": 1, "max_new_tokens": 5}])
def test_a_text_is_written_alike_alone_in_a_batch_and_piece_by_piece(
    users: dict[str, User], command: str, given: dict[str, float]
) -> None:
    rewriter = rewriter_of(users, command)
    decoding = rewriter.decoding(given)
    together = rewriter.write(TEXTS, decoding)
    assert len(set(together)) > 1
    assert together == [text for one in TEXTS for text in rewriter.write([one], decoding)]
    assert together == ["".join(rewriter.stream(one, decoding)) for one in TEXTS]


@rewriting
def test_what_is_written_is_what_evaluation_scores(users: dict[str, User], command: str) -> None:
    rewriter, rows = rewriter_of(users, command), ROWS[command]
    sources, targets = zip(*(row.texts for row in rows), strict=True)
    scored = rewriter.task.score.sums(rewriter.write(sources, rewriter.decoding({})), targets, sources)
    sums = sums_of(rewriter, rows)
    assert {name: sums[name] for name in scored} == pytest.approx(scored)


@rewriting
def test_a_blank_text_becomes_an_empty_one(users: dict[str, User], command: str) -> None:
    rewriter = rewriter_of(users, command)
    decoding = rewriter.decoding({})
    (alone,) = rewriter.write(TEXTS[:1], decoding)
    assert rewriter.write(["", TEXTS[0], " \n"], decoding) == ["", alone, ""]
    assert rewriter.write([], decoding) == list(rewriter.stream(" ", decoding)) == []


def test_what_lies_behind_the_length_that_was_learned_is_not_read(users: dict[str, User]) -> None:
    rewriter = rewriter_of(users, "translate")
    decoding = rewriter.decoding({})
    longest = "abcdefghij" * 2 + "klm"  # 23 tokens and the end
    assert [rewriter.cuts(text) for text in (longest, longest + "x")] == [False, True]
    assert rewriter.write([longest], decoding) == rewriter.write([longest + " and more"], decoding)


def test_settings_that_are_not_given_are_those_of_evaluation(users: dict[str, User]) -> None:
    rewriter = rewriter_of(users, "translate")
    assert rewriter.decoding({"num_beams": None}) == rewriter.task.decoding
    assert rewriter.decoding({"length_penalty": 2.0}).num_beams == 2
    with pytest.raises(ConfigError, match=r"^decoding: num_beams: .* greater than 0, got 0.*AGFL-CONFIG-011"):
        rewriter.decoding({"num_beams": 0})


def test_an_answer_is_what_evaluation_scores(users: dict[str, User]) -> None:
    answerer = users["answer"]
    assert isinstance(answerer, Answerer)
    rows = [row for row in ROWS["answer"] if isinstance(row, QuestionRow)]
    answers = [answerer.answer(row.context, row.question).text for row in rows]
    assert "" in answers
    assert len(set(answers)) > 2
    scored = span_overlap.span_overlap_sums(answers, [row.answers.text for row in rows])
    sums = sums_of(answerer, rows)
    assert {name: sums[name] for name in scored} == pytest.approx(scored)


@given(context=st.text(), question=st.text())
def test_an_answer_stands_where_it_says(users: dict[str, User], context: str, question: str) -> None:
    answerer = users["answer"]
    assert isinstance(answerer, Answerer)
    found = answerer.answer(context, question)
    assert found.text == context[found.start : found.end] == found.text.strip()
    assert found.text or (found.start, found.end) == (0, 0)


def test_a_context_of_many_windows_is_read_in_parts(users: dict[str, User], monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = users["answer"]
    assert isinstance(answerer, Answerer)
    context = " ".join(f"the {number} cats" for number in range(500))
    whole, forward, most = answerer.answer(context, "who?"), answerer.model.forward, [0]

    def counting(ids_NT: torch.Tensor, mask_NT: torch.Tensor, types_BT: torch.Tensor) -> torch.Tensor:
        most[0] = max(most[0], len(ids_NT))
        return forward(ids_NT, mask_NT, types_BT=types_BT)

    monkeypatch.setattr(question_answering, "WINDOWS_AT_ONCE", 5)
    monkeypatch.setattr(answerer.model, "forward", counting)
    assert whole.text
    assert answerer.answer(context, "who?") == whole
    assert most == [5]


def test_the_end_of_a_question_that_is_too_long_is_not_read(users: dict[str, User]) -> None:
    answerer = users["answer"]
    assert isinstance(answerer, Answerer)
    longest = "abcdefghij" * 2 + "kl"  # half of 48 tokens, less two
    assert [answerer.cuts(question) for question in (longest, longest + "x")] == [False, True]
    assert answerer.answer(CONTEXTS[0], longest) == answerer.answer(CONTEXTS[0], longest + " and more")


@pytest.mark.parametrize("prompt", ["", "the cat"])
def test_a_continuation_is_what_the_generator_draws(users: dict[str, User], prompt: str) -> None:
    continuer = users["generate"]
    assert isinstance(continuer, Continuer)
    tokenizer, decoding = continuer.task.tokenizer, continuer.decoding({"max_new_tokens": 30})
    assert (decoding.temperature, decoding.top_k) == (0.8, 40)
    first, again, other = ("".join(continuer.stream(prompt, decoding, seed)) for seed in (1, 1, 2))
    (ids,) = generate(
        continuer.model,
        [[tokenizer.bos_id, *tokenizer.encode(prompt)]],
        GenerationConfig(max_new_tokens=30, temperature=0.8, top_k=40),
        eos_id=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(1),
    )
    assert first == again == tokenizer.decode(ids)
    assert first != other


@pytest.mark.parametrize("command", ["translate", "summarize", "answer"])
def test_metrics_over_all_rows_are_those_of_the_sums_of_any_parts(users: dict[str, User], command: str) -> None:
    user, rows = users[command], ROWS[command]
    parts = [sums_of(user, part) for part in (rows[:2], rows[2:])]
    together = {name: sum(part[name] for part in parts) for name in user.task.eval_sums}
    assert evaluate_rows(user.model, user.task, rows) == pytest.approx(user.task.eval_metrics(together), rel=1e-5)


@pytest.mark.parametrize("command", ["translate", "summarize", "answer", "generate"])
def test_no_row_is_left_out(users: dict[str, User], command: str) -> None:
    user, rows = users[command], ROWS[command]
    sums = sums_of(user, rows)
    tokenizer = user.task.tokenizer
    counted, count = {
        "translate": ("eval/chrf/reference1", sum(len(re.sub(r"\s", "", row.texts[-1])) for row in rows)),
        "summarize": ("eval/rouge/count", len(rows)),
        "answer": ("eval/span/count", len(rows)),
        "generate": ("eval/tokens", sum(len(tokenizer.encode(row.texts[0])) + 1 for row in rows)),
    }[command]
    assert sums[counted] == count


def test_a_model_without_a_task_is_refused(tmp_path: Path) -> None:
    model = AutoGenModel({"dim": 8, "layers": [{"type": "ff"}]}, seed=0)
    save_model(tmp_path, model.config, model.state_dict())
    with pytest.raises(ConfigError, match=r": task: .*AGFL-CONFIG-038"):
        open_model(tmp_path)


def sums_of(user: User, rows: Sequence[Row]) -> dict[str, float]:
    task: AnyTask = user.task
    return evaluation_sums(user.model, HeldOut(task, task.hold_out(rows), batch_size=3))
