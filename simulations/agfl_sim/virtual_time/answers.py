"""How long each owner's device took for each request to train: kept in the run's folder, for its report."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from agfl_models.errors import DataError
from agfl_models.files.durable_files import read_json_lines


@dataclass(frozen=True)
class Answer:
    """One of an owner. sent: when it was asked, in seconds since the run began; seconds: until the answer was there.

    is_late: nobody waited for it any more.
    """

    sent: float
    owner: str
    seconds: float
    is_late: bool


def append_answer(path: Path, answer: Answer) -> None:
    """Add an answer to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(answer)) + "\n")


def cut_torn_line(path: Path) -> None:
    """Take away a last line that a crash has cut short, so that the next one begins where a line begins."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def read_answers(path: Path) -> list[Answer]:
    """Return all of them; none where there is no file.

    Raises:
        CheckpointError, DataError: the file is unreadable or malformed.
    """
    if not path.exists():
        return []
    found = read_json_lines(path)
    try:
        return [
            Answer(float(one["sent"]), str(one["owner"]), float(one["seconds"]), bool(one["is_late"])) for one in found
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("AGFL-DATA-088", f"{path}: must hold answers of owners' devices, does not: {error!r}") from None
