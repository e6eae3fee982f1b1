"""ROUGE of sums over owners is the mean of what Google's rouge-score says of each of their examples."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tests.models.metrics.pairs import CORPORA, CORPUS_FILES, Pair, added, columns, real_pairs

from agfl_models.metrics.rouge import NAMES, SCORES, SHARE, lcs_length, rouge_scores, rouge_sums
from agfl_models.metrics.scripts import is_beyond_ascii

SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


def check_against_rouge_score(pairs: list[Pair]) -> None:
    pairs = [pair for pair in pairs if not is_beyond_ascii(pair[1])] or [("a", "b")]
    expected = [SCORER.score(target=reference, prediction=hypothesis) for hypothesis, reference in pairs]
    found = rouge_scores(rouge_sums(*columns(pairs)))
    assert tuple(found) == (*SCORES, SHARE)
    assert found[SHARE] == 0, "rouge-score knows all of these words"
    for kind in ("rouge1", "rouge2", "rougeL"):
        mean = 100 * sum(scores[kind].fmeasure for scores in expected) / len(pairs)
        assert found[f"eval/{kind}"] == pytest.approx(mean, rel=1e-9, abs=1e-9)


@settings(max_examples=250)
@given(CORPORA.filter(bool))
def test_score_is_that_of_rouge_score(pairs: list[Pair]) -> None:
    check_against_rouge_score(pairs)


@pytest.mark.parametrize("name", CORPUS_FILES)
def test_score_is_that_of_rouge_score_on_real_text(name: str) -> None:
    pairs = real_pairs(name)
    check_against_rouge_score(pairs)
    for pair in pairs:
        check_against_rouge_score([pair])


def lcs_by_table(left: str, right: str) -> int:
    """Return the length by the textbook's recurrence."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left, 1):
        for j, b in enumerate(right, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


@settings(max_examples=500)
@given(st.text("abc", max_size=150), st.text("abc", max_size=150))
def test_longest_common_subsequence_is_that_of_the_textbook(left: str, right: str) -> None:
    assert lcs_length(left, right) == lcs_by_table(left, right)


@given(CORPORA, CORPORA)
def test_sums_of_owners_are_the_sums_of_their_text(left: list[Pair], right: list[Pair]) -> None:
    both = rouge_sums(*columns(left + right))
    assert added(rouge_sums(*columns(left)), rouge_sums(*columns(right))) == pytest.approx(both, rel=1e-12)
    assert tuple(both) == NAMES
    assert all(0 <= value <= len(left + right) for value in both.values())


def test_no_text_means_no_score() -> None:
    assert rouge_scores(rouge_sums([], [])) == {}
    assert rouge_scores(rouge_sums([""], [""])) == dict.fromkeys((*SCORES, SHARE), 0.0)
