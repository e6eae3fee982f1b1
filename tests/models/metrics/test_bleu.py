"""BLEU of sums over owners is sacreBLEU's corpus BLEU of all their text."""

from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given, settings
from tests.models.metrics.pairs import CORPORA, CORPUS_FILES, Pair, added, columns, real_pairs

from agfl_models.metrics.bleu import NAMES, bleu_scores, bleu_signature, bleu_sums
from agfl_models.metrics.scripts import is_unspaced


def check_against_sacrebleu(pairs: list[Pair]) -> None:
    pairs = [pair for pair in pairs if not is_unspaced(pair[1])] or [("a", "b")]
    hypotheses, references = columns(pairs)
    expected = sacrebleu.BLEU().corpus_score(hypotheses, [references])
    found = bleu_scores(bleu_sums(hypotheses, references))
    if found == {}:
        assert expected.sys_len == expected.ref_len == 0
        return
    assert found["eval/bleu"] == expected.score, "to the last bit, hence to each printed digit"


@settings(max_examples=250)
@given(CORPORA.filter(bool))
def test_score_is_that_of_sacrebleu(pairs: list[Pair]) -> None:
    check_against_sacrebleu(pairs)


@pytest.mark.parametrize("name", CORPUS_FILES)
def test_score_is_that_of_sacrebleu_on_real_text(name: str) -> None:
    pairs = real_pairs(name)
    check_against_sacrebleu(pairs)
    for start in range(0, len(pairs), 5):
        check_against_sacrebleu(pairs[start : start + 5])
    for pair in pairs:
        check_against_sacrebleu([pair])


@given(CORPORA, CORPORA)
def test_sums_of_owners_are_the_sums_of_their_text(left: list[Pair], right: list[Pair]) -> None:
    both = bleu_sums(*columns(left + right))
    assert added(bleu_sums(*columns(left)), bleu_sums(*columns(right))) == both
    assert tuple(both) == NAMES
    assert all(value >= 0 and value.is_integer() for value in both.values())


def test_no_text_means_no_score() -> None:
    assert bleu_scores(bleu_sums([], [])) == {}
    assert bleu_scores(bleu_sums([""], ["a reference"])) == {"eval/bleu": 0.0}
    assert bleu_scores(bleu_sums(["a hypothesis"], [""])) == {"eval/bleu": 0.0}


def test_signature_says_how_it_was_computed() -> None:
    reference = sacrebleu.BLEU()
    reference.corpus_score(["a"], [["a"]])
    ours = "|references without spaces (cjk etc.):characters"
    assert bleu_signature() == f"{reference.get_signature().format()}{ours}"
    assert bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
