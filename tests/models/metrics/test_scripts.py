"""A text is as good as its reference in every script: a perfect one scores 100, half of it between, another one 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from tests.models.metrics.pairs import TEXTS

from agfl_models.metrics.bleu import bleu_scores, bleu_sums
from agfl_models.metrics.rouge import rouge_scores, rouge_sums
from agfl_models.metrics.scripts import is_beyond_ascii, is_unspaced, spaced_out, unicode_words
from agfl_models.metrics.signatures import signatures
from agfl_models.metrics.span_overlap import span_overlap_scores, span_overlap_sums

SPACED = {
    "Russian": "\u0441\u043e\u043b\u043d\u0446\u0435 взошло над старым лесом",
    "Greek": "\u03bf ήλιος ανατέλλει πάνω από το δάσος",
    "Hebrew": "השמש זורחת מעל היער הישן",
    "Arabic": "تشرق الشمس فوق الغابة القديمة",
    "Hindi": "सूरज पुराने जंगल के ऊपर उगता है",
    "Korean": "오래된 숲 위로 해가 뜬다",
    "Georgian": "მზე ამოდის ძველი ტყის თავზე",
}
UNSPACED = {
    "Chinese": "太阳从古老的森林上方升起",
    "Japanese": "古い森の上に太陽が昇る",
    "Thai": "ดวงอาทิตย์ขึ้นเหนือป่าเก่า",
    "Khmer": "ព្រះអាទិត្យរះលើព្រៃចាស់",
}
ALL = SPACED | UNSPACED
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"


def rouge_l(hypothesis: str, reference: str) -> float:
    return rouge_scores(rouge_sums([hypothesis], [reference]))["eval/rougeL"]


def f1(hypothesis: str, reference: str) -> float:
    return span_overlap_scores(span_overlap_sums([hypothesis], [[reference]]))["eval/f1"]


def bleu(hypothesis: str, reference: str) -> float:
    return bleu_scores(bleu_sums([hypothesis], [reference]))["eval/bleu"]


def long_bleu(hypothesis: str, reference: str) -> float:
    """Of texts long enough for runs of four words."""
    return bleu(" ".join([hypothesis] * 3), " ".join([reference] * 3))


@pytest.mark.parametrize("score", [rouge_l, f1, long_bleu])
@pytest.mark.parametrize("text", ALL.values(), ids=ALL)
def test_scores_are_between_nothing_and_the_whole(score: Callable[[str, str], float], text: str) -> None:
    assert score(text, text) == pytest.approx(100)
    half = text[: text.index(" ", len(text) // 2)] if " " in text else text[: len(text) // 2]
    assert 5 < score(half, text) < 95
    assert score("quite another thing", text) == pytest.approx(0, abs=1e-9)


def test_chinese_is_scored_as_sacrebleus_own_rule_for_it_does() -> None:
    reference, hypothesis = "太阳从古老的森林上方升起。今天天气很好", "太阳在古老的森林升起。明天天气很好"
    expected = sacrebleu.BLEU(tokenize="zh").corpus_score([hypothesis], [[reference]]).score
    assert bleu(hypothesis, reference) == pytest.approx(expected)


@given(TEXTS.filter(lambda text: not is_beyond_ascii(text)), st.sampled_from(sorted(ALL.values())))
def test_what_is_written_does_not_change_the_rule(reference: str, written: str) -> None:
    with_it = rouge_sums([written], [reference])
    assert with_it["eval/rouge/rougeL"] <= rouge_sums([reference], [reference])["eval/rouge/rougeL"]
    assert not (is_unspaced(reference) and reference.isascii())


def test_words_keep_their_marks_and_are_the_same_however_they_are_composed() -> None:
    assert unicode_words("सूरज उगता है, №5!") == ["सूरज", "उगता", "है", "№", "5"]
    assert unicode_words("Cafe\u0301") == unicode_words("caf\u00e9") == ["caf\u00e9"]
    assert unicode_words("中文 mixed text") == ["中", "文", "mixed", "text"]
    assert unicode_words(PERSIAN) == [PERSIAN]
    assert unicode_words("") == []
    assert spaced_out("中文A!").split() == ["中", "文", "A!"]
    assert rouge_l("🙂🙂", "🙂🙂") == 100


def test_a_sum_says_how_many_were_counted_by_another_rule() -> None:
    references = ["the sun rises", "солнце встаёт", "太阳升起", "the sun sets"]
    assert rouge_scores(rouge_sums(references, references))["eval/beyond_ascii"] == 50
    overlap = span_overlap_sums(references, [[text] for text in references])
    assert span_overlap_scores(overlap)["eval/unspaced"] == 25


def test_signatures_name_the_rule() -> None:
    found = signatures(["eval/rougeL", "eval/f1", "eval/bleu", "eval/loss"])
    assert found.keys() == {"eval/rougeL", "eval/f1", "eval/bleu"}
    assert "unicode words" in found["eval/rougeL"]
    assert all("characters" in signature for signature in found.values())
