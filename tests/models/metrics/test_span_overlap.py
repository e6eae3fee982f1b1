"""Exact match and F1 of sums over owners are what SQuAD's evaluation script says of all their answers."""

from __future__ import annotations

import collections
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.metrics.pairs import CORPUS_FILES, PAIRS, TEXTS, added, columns, real_pairs

from agfl_models.metrics.scripts import is_unspaced
from agfl_models.metrics.span_overlap import NAMES, SHARE, span_overlap_scores, span_overlap_sums

Example = tuple[str, list[str]]  # hypothesis, references


@st.composite
def _examples(draw: st.DrawFn) -> Example:
    hypothesis, reference = draw(PAIRS)
    others = draw(st.lists(TEXTS, max_size=2))
    return hypothesis, draw(st.permutations(draw(st.sampled_from([[], others, [reference, *others]]))))


CORPORA = st.lists(_examples(), max_size=6)


def normalize_answer(s: str) -> str:
    """Follow evaluate-v2.0.py of SQuAD step by step."""
    lower = s.lower()
    without_punctuation = "".join(ch for ch in lower if ch not in set(string.punctuation))
    without_articles = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", without_punctuation)
    return " ".join(without_articles.split())


def compute_f1(a_gold: str, a_pred: str) -> float:
    """Follow evaluate-v2.0.py of SQuAD step by step."""
    gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def check_against_the_script(examples: list[Example]) -> None:
    examples = [one for one in examples if not any(is_unspaced(normalize_answer(a)) for a in one[1])] or [("a", ["b"])]
    exact, f1 = 0, 0.0
    for hypothesis, references in examples:
        gold_answers = [a for a in references if normalize_answer(a)] or [""]
        exact += max(int(normalize_answer(a) == normalize_answer(hypothesis)) for a in gold_answers)
        f1 += max(compute_f1(a, hypothesis) for a in gold_answers)
    found = span_overlap_scores(span_overlap_sums([h for h, _ in examples], [r for _, r in examples]))
    expected = {"eval/exact_match": 100.0 * exact / len(examples), "eval/f1": 100.0 * f1 / len(examples), SHARE: 0.0}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=250)
@given(CORPORA.filter(bool))
def test_scores_are_those_of_the_script(examples: list[Example]) -> None:
    check_against_the_script(examples)


@pytest.mark.parametrize("name", CORPUS_FILES)
def test_scores_are_those_of_the_script_on_real_text(name: str) -> None:
    hypotheses, references = columns(real_pairs(name))
    neighbors = [*references[1:], ""]
    examples = [(h, [r, other]) for h, r, other in zip(hypotheses, references, neighbors, strict=True)]
    check_against_the_script(examples)
    for example in examples:
        check_against_the_script([example])


@given(CORPORA, CORPORA)
def test_sums_of_owners_are_the_sums_of_their_text(left: list[Example], right: list[Example]) -> None:
    sums = [span_overlap_sums([h for h, _ in part], [r for _, r in part]) for part in (left, right, left + right)]
    assert added(sums[0], sums[1]) == pytest.approx(sums[2], rel=1e-12)
    assert tuple(sums[2]) == NAMES
    assert all(0 <= value <= len(left + right) for value in sums[2].values())


@pytest.mark.parametrize(
    ("hypothesis", "references", "exact", "f1"),
    [
        ("The cat!", ["a cat", "dog"], 100, 100),
        ("cat dog", ["dog", "a big cat dog"], 0, 80),
        ("", [], 100, 100),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["the", "cat"], 0, 0),
        ("a.n. cat", ["cat"], 100, 100),
        ("the-cat", ["cat"], 0, 0),
    ],
)
def test_scores_by_hand(hypothesis: str, references: list[str], exact: float, f1: float) -> None:
    scores = span_overlap_scores(span_overlap_sums([hypothesis], [references]))
    assert scores == pytest.approx({"eval/exact_match": exact, "eval/f1": f1, SHARE: 0.0})


def test_no_example_means_no_score() -> None:
    assert span_overlap_scores(span_overlap_sums([], [])) == {}
