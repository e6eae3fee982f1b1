"""The corpora that ship with the package, each divided among its natural owners; attribution in NOTICE."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from agfl_models.errors import ConfigError
from agfl_models.examples import Row, TextRow
from agfl_models.tasks.question_answering import QuestionRow
from agfl_models.tasks.summarization import SummaryRow
from agfl_models.tasks.text_classification import LabeledRow
from agfl_models.tasks.translation import TranslationRow

Owned = tuple[str, Row]  # an owner, and a row of it


@dataclass(frozen=True)
class Corpus:
    """A shipped file, the task it serves, and how one of its lines becomes owned rows."""

    task: str
    file: str
    rows: Callable[[Mapping[str, Any]], Iterator[Owned]]

    def load(self) -> dict[str, list[Row]]:
        """Return the rows by owner's name."""
        packed = files("agfl_models").joinpath(f"data/{self.file}").read_bytes()
        owners: dict[str, list[Row]] = {}
        for line in gzip.decompress(packed).decode("utf-8").split("\n")[:-1]:
            for owner, row in self.rows(json.loads(line)):
                owners.setdefault(_file_name(owner), []).append(row)
        return owners


def _speeches(line: Mapping[str, Any]) -> Iterator[Owned]:
    return ((line["client"], TextRow(text=text)) for text in line["speeches"])


def _translation(line: Mapping[str, Any]) -> Iterator[Owned]:
    yield line["owner"], TranslationRow(source=line["src"], target=line["tgt"])


def _summary(line: Mapping[str, Any]) -> Iterator[Owned]:
    yield line["owner"], SummaryRow(document=line["document"], summary=line["summary"])


def _question(line: Mapping[str, Any]) -> Iterator[Owned]:
    yield line["owner"], QuestionRow.model_validate(line)


# Where a text of a user interface stands; what is left out has few texts, or stands in several places.
SECTIONS = ("config", "entity", "exceptions", "issues", "options", "services")


def _section(line: Mapping[str, Any]) -> Iterator[Owned]:
    section = line["key"].partition(".")[0]
    if section in SECTIONS:
        yield line["owner"], LabeledRow(text=line["src"], label=section)


CORPORA = {
    "shakespeare_roles": Corpus("language_modeling", "shakespeare_roles.jsonl.gz", _speeches),  # 608 owners
    "home_assistant_en_de": Corpus("translation", "ha_mt_en_de.jsonl.gz", _translation),  # 907
    "docstring_summaries": Corpus("summarization", "docstring_summ.jsonl.gz", _summary),  # 125
    "docstring_questions": Corpus("question_answering", "docstring_qa.jsonl.gz", _question),  # 68
    "home_assistant_sections": Corpus("text_classification", "ha_mt_en_de.jsonl.gz", _section),  # 895
}


def corpus_of(task: str, name: str | None) -> Corpus:
    """Return the named corpus, or the task's own where no name is given.

    Raises:
        ConfigError: there is no such corpus, or it serves another task.
    """
    own = [key for key, corpus in CORPORA.items() if corpus.task == task]
    if not own:
        raise ConfigError(
            "AGFL-CONFIG-133", f"data.path: required for task {task}, which has no corpus, got {name or 'none'}"
        )
    if name is None:
        return CORPORA[own[0]]
    if name not in own:
        raise ConfigError("AGFL-CONFIG-013", f"data.corpus: must be {' or '.join(own)} for task {task}, got {name!r}")
    return CORPORA[name]


@cache
def _file_name(client: str) -> str:
    """ "hamlet/LADY MACBETH" -> "hamlet-LADY-MACBETH": owner names are file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", client).strip("-.")
