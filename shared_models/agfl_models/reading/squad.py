"""Questions from a file in SQuAD's own format: data, paragraphs, qas; version 1.1, or 2.0 with `is_impossible`.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from agfl_models.errors import DataError
from agfl_models.validation import first_problem


class _Question(BaseModel):
    question: Any
    answers: Any = None
    is_impossible: bool = False


class _Paragraph(BaseModel):
    context: Any
    qas: list[_Question]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: list[_Article]


def squad_records(path: Path, content: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each question stands, and its columns `context`, `question` and `answers`.

    Raises:
        DataError: the file is built otherwise, or a question that is impossible has answers.
    """
    if not isinstance(content, dict) or "data" not in content:
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            "AGFL-DATA-050", f"data: {path}: must be SQuAD (data, paragraphs, qas) or one JSON object a line, got {got}"
        )
    try:
        squad = _Squad.model_validate(content)
    except ValidationError as error:
        raise DataError("AGFL-DATA-051", f"data: {path}: {first_problem(error, content)}") from None
    for i, article in enumerate(squad.data):
        for j, paragraph in enumerate(article.paragraphs):
            for k, item in enumerate(paragraph.qas):
                place = f"data.{i}.paragraphs.{j}.qas.{k}"
                if item.answers is None and not item.is_impossible:
                    raise DataError(
                        "AGFL-DATA-052",
                        f"data: {path}: {place}: answers: required unless is_impossible is true, got none",
                    )
                if item.is_impossible and item.answers:
                    raise DataError(
                        "AGFL-DATA-053", f"data: {path}: {place}: answers: must be none where is_impossible, got some"
                    )
                yield place, {"context": paragraph.context, "question": item.question, "answers": item.answers or ()}
