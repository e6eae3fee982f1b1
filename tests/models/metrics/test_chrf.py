"""chrF of sums over owners is sacreBLEU's corpus chrF2 of all their text."""

from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given, settings
from tests.models.metrics.pairs import CORPORA, CORPUS_FILES, Pair, added, columns, real_pairs

from agfl_models.metrics.chrf import NAMES, chrf_scores, chrf_signature, chrf_sums


def check_against_sacrebleu(pairs: list[Pair]) -> None:
    hypotheses, references = columns(pairs)
    expected = sacrebleu.CHRF().corpus_score(hypotheses, [references])
    found = chrf_scores(chrf_sums(hypotheses, references))
    if found == {}:
        assert not "".join(references).split()
        return
    assert found["eval/chrf"] == expected.score, "to the last bit, hence to each printed digit"


@settings(max_examples=250)
@given(CORPORA.filter(bool))
def test_score_is_that_of_sacrebleu(pairs: list[Pair]) -> None:
    check_against_sacrebleu(pairs)


@pytest.mark.parametrize("name", CORPUS_FILES)
def test_score_is_that_of_sacrebleu_on_real_text(name: str) -> None:
    pairs = real_pairs(name)
    check_against_sacrebleu(pairs)
    for pair in pairs:
        check_against_sacrebleu([pair])


@given(CORPORA, CORPORA)
def test_sums_of_owners_are_the_sums_of_their_text(left: list[Pair], right: list[Pair]) -> None:
    both = chrf_sums(*columns(left + right))
    assert added(chrf_sums(*columns(left)), chrf_sums(*columns(right))) == both
    assert tuple(both) == NAMES
    assert all(value >= 0 and value.is_integer() for value in both.values())


def test_no_text_means_no_score() -> None:
    assert chrf_scores(chrf_sums([], [])) == {}
    assert chrf_scores(chrf_sums([""], ["a reference"])) == {"eval/chrf": 0.0}


def test_signature_says_how_it_was_computed() -> None:
    reference = sacrebleu.CHRF()
    reference.corpus_score(["a"], [["a"]])
    assert chrf_signature() == reference.get_signature().format()
    assert chrf_signature().startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.")
