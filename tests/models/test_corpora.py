"""Every shipped corpus is whole: as many owners and rows as its source has, under names that files can have."""

from __future__ import annotations

import re

import pytest

from agfl_models.errors import ConfigError
from agfl_models.examples import Row
from agfl_models.reading.corpora import CORPORA, corpus_of
from agfl_models.tasks.question_answering import QuestionRow

# A name of this rule can be a file's name and a node's; written here again on purpose.
NAME_RULE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
SIZES = {
    "shakespeare_roles": (608, 27_276),
    "home_assistant_en_de": (907, 24_676),
    "docstring_summaries": (125, 6_030),
    "docstring_questions": (68, 6_552),
    "home_assistant_sections": (895, 21_437),
}
KNOWN: dict[str, tuple[str, str]] = {
    "shakespeare_roles": ("hamlet-HAM", "To be, or not to be"),
    "home_assistant_en_de": ("homematicip_cloud", "Please press the blue button."),
    "docstring_summaries": ("scipy.optimize", "Solve a nonlinear least-squares problem with bounds on the variables."),
    "docstring_questions": ("scipy.optimize", "What does the parameter pivrow of _apply_pivot mean?"),
    "home_assistant_sections": ("homematicip_cloud", "Please press the blue button."),
}


@pytest.fixture(scope="module", params=CORPORA)
def loaded(request: pytest.FixtureRequest) -> tuple[str, dict[str, list[Row]]]:
    name: str = request.param
    return name, CORPORA[name].load()


def test_corpus_has_all_owners_and_rows(loaded: tuple[str, dict[str, list[Row]]]) -> None:
    name, owners = loaded
    assert (len(owners), sum(map(len, owners.values()))) == SIZES[name]
    owner, text = KNOWN[name]
    assert any(text in part for row in owners[owner] for part in row.texts)
    assert all(part.strip() for rows in owners.values() for row in rows for part in row.texts)


def test_names_of_owners_are_names_of_files(loaded: tuple[str, dict[str, list[Row]]]) -> None:
    _, owners = loaded
    assert all(re.fullmatch(NAME_RULE, name) for name in owners)
    folded = {name.casefold() for name in owners}
    assert len(folded) == len(owners), "file systems may not tell upper from lower case"


def test_shipped_answers_stand_where_they_are_said_to() -> None:
    rows = [row for rows in CORPORA["docstring_questions"].load().values() for row in rows]
    for row in rows:
        assert isinstance(row, QuestionRow)
        assert row.answers.answer_start is not None
        (text,), (start,) = row.answers.text, row.answers.answer_start
        assert start is not None
        assert row.context[start : start + len(text)] == text


def test_each_task_has_a_corpus_of_its_own() -> None:
    for name, corpus in CORPORA.items():
        assert corpus_of(corpus.task, None) is corpus_of(corpus.task, name) is corpus
    with pytest.raises(
        ConfigError,
        match=r"must be docstring_summaries for task summarization, got 'docstring_question.*AGFL-CONFIG-013",
    ):
        corpus_of("summarization", "docstring_questions")


def test_a_task_without_a_corpus_names_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"^data\.path: .*AGFL-CONFIG-133"):
        corpus_of("digits", None)
