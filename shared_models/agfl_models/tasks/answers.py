"""Answers of question answering, in each form that people write them in, and where they stand in their context."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt

from agfl_models.examples import Text

FAR = 32  # characters: what counting otherwise, or a context that was trimmed, moves an answer by at most
_FORMS = 'must be a text, a list of texts, or text and answer_start as in SQuAD; [] or "" where there is no answer'


class Answers(BaseModel):
    """All right answers, none where the context has none. `answer_start` counts characters; None is to be found."""

    model_config = ConfigDict(frozen=True)

    text: tuple[Text, ...] = ()
    answer_start: tuple[StrictInt | None, ...] | None = None


def as_columns(answers: Any) -> Any:
    """Return answers as lists `text` and `answer_start`: of one text, of several, of SQuAD's pairs, of one pair.

    Raises:
        ValueError: they are written otherwise.
    """
    if isinstance(answers, Answers):
        return answers
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, list | tuple):
        if all(isinstance(item, dict) for item in answers):
            answers = {key: [item.get(key) for item in answers] for key in ("text", "answer_start")}
        elif all(isinstance(item, str) for item in answers):
            answers = {"text": list(answers)}
    if not isinstance(answers, dict):
        raise ValueError(f"{_FORMS}, got {str(answers)[:40]}")
    columns = {key: answers[key] for key in ("text", "answer_start") if answers.get(key) is not None}
    columns = {key: [value] if isinstance(value, str | int) else value for key, value in columns.items()}
    texts = columns.get("text", [])
    if not all(isinstance(value, list | tuple) for value in columns.values()) or (columns and "text" not in columns):
        raise ValueError(f"{_FORMS}, got {str(answers)[:40]}")
    if all(isinstance(text, str) and not text.strip() for text in texts):
        return {}  # SQuAD's readers write "no answer" as "" at -1, too
    return columns


def as_starts(starts: Any) -> Any:
    """Return the offsets in a column `answer_start`: one number, a list, or either as text; None if it is empty.

    Raises:
        ValueError: it holds anything else.
    """
    if starts is None or (isinstance(starts, str) and not starts.strip()):
        return None
    found = starts
    if isinstance(starts, str):
        try:
            found = json.loads(starts)
        except (ValueError, RecursionError):
            found = None
    found = found if isinstance(found, list | tuple) else [found]
    if not all(map(_is_whole, found)):
        raise ValueError(f"must be a whole number or a list of them, got {str(starts)[:40]!r}")
    return [int(start) for start in found]


def _is_whole(start: Any) -> bool:
    """Whether it is a whole number; a table may have made it 4.0."""
    return not isinstance(start, bool) and isinstance(start, int | float) and start == start // 1


def locate(context: str, answer: str, start: int | None) -> int:
    """Return in characters where an answer stands: where `start` says, however that was counted, or nearest to it.

    Raises:
        ValueError: it stands nowhere, or only far from there.
    """
    first = context.find(answer)
    if first < 0:
        raise ValueError(f"text must be part of the context, got {answer[:40]!r}")
    if start is None:
        return first
    for place in _meanings(context, start):
        if context.startswith(answer, place):
            return place
    if not 0 <= start < len(context):
        raise ValueError(f"answer_start must lie in the context of {len(context)} characters, got {start}")
    after = context.find(answer, start)
    before = context.rfind(answer, 0, start + len(answer))
    nearest = min((place for place in (before, after) if place >= 0), key=lambda place: abs(place - start))
    if abs(nearest - start) > FAR:
        rule = f"answer_start must be where the text stands, at most {FAR} characters off"
        raise ValueError(f"{rule}, got {start} for {answer[:40]!r} at {nearest}")
    return nearest


def _meanings(context: str, start: int) -> Iterator[int]:
    """Yield where `start` is in characters if it counts those, UTF-16's units, UTF-8's bytes, or line ends as two."""
    if start < 0:
        return
    yield start
    for sizes in (_utf16_size, _utf8_size, _windows_size):
        ends = [0, *accumulate(map(sizes, context))]
        place = bisect_left(ends, start)
        if place < len(ends) and ends[place] == start:
            yield place


def _utf16_size(character: str) -> int:
    return 2 if character > "\uffff" else 1


def _utf8_size(character: str) -> int:
    return len(character.encode("utf-8", errors="replace"))


def _windows_size(character: str) -> int:
    return 2 if character == "\n" else 1
