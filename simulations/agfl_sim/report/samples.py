"""What the final model writes for held-out rows of a few owners, whose text only a simulation has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agfl_models.errors import DataError
from agfl_models.examples import Row
from agfl_models.files.store import CONFIG_FILE
from agfl_models.inference import Answerer, Classifier, Continuer, Rewriter, User
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.question_answering import QuestionRow
from agfl_models.tasks.text_classification import LabeledRow
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_server.report.samples_section import Sample, final_model, max_tokens, samples_section

_NUM_OWNERS = 3
_PROMPT = 120  # characters
_CONTEXT = 8000  # characters: what is read whole, for an answer in it, shall not take long
_AROUND = 120  # characters of a context on both sides of the answer
_NOTE = "The first held-out row of {owners}: nobody trained on them. So this page quotes owners' text."
_DRAWN = " How a text goes on is drawn by a fixed seed."


def write_samples(folder: Path, owners: Sequence[Path]) -> str:
    """Return the report's section on the finished run in `folder`; nothing without a model or held-out rows.

    Raises:
        AgflError: the model cannot be used.
    """
    user = final_model(folder)
    if user is None:
        return ""
    config, samples = load_run_config(folder / CONFIG_FILE), []
    for path in _some(owners):
        row = _held_out(path, config)
        if row is not None:
            samples.append({"Owner": path.stem, **_sample(user, row)})
    note = _NOTE.format(owners=", ".join(one["Owner"] for one in samples))
    return samples_section(samples, note + (_DRAWN if isinstance(user, Continuer) else ""))


def _some(owners: Sequence[Path]) -> list[Path]:
    """Return the first owner, the last one, and those evenly between them."""
    ordered, last = sorted(owners, key=lambda path: path.stem), len(owners) - 1
    places = {round(i * last / (_NUM_OWNERS - 1)) for i in range(_NUM_OWNERS)}
    return [ordered[place] for place in sorted(places)]


def _held_out(path: Path, config: RunConfig) -> Row | None:
    try:
        rows = [row for row in config.task.read(path)[0] if not row.is_blank]
    except DataError:
        return None  # its node refused each round, and the run did without
    _, held_out = split_rows(rows, config.task.validation_fraction)
    return next((row for row in held_out if not isinstance(row, QuestionRow) or len(row.context) <= _CONTEXT), None)


def _sample(user: User, row: Row) -> Sample:
    if isinstance(user, Continuer):
        prompt = _beginning(row.texts[0], int(min(_PROMPT, user.model.max_length // 8)))  # 4 bytes a character, half
        decoding = user.decoding({"max_new_tokens": max_tokens(user)})
        return {"Beginning of a text": prompt, "The model goes on": "".join(user.stream(prompt, decoding))}
    if isinstance(user, Rewriter):
        decoding = user.decoding({})
        fewer = min(decoding.max_new_tokens, max_tokens(user))
        source, reference = row.texts
        (written,) = user.write([source], user.decoding({"max_new_tokens": fewer}))
        return {"Source": source, "Reference": reference, "The model": written}
    if isinstance(user, Classifier):
        assert isinstance(row, LabeledRow)
        (found,) = user.classify([row.text])
        return {"Text": row.text, "Label": row.label, "The model": next(iter(found))}
    assert isinstance(user, Answerer)
    assert isinstance(row, QuestionRow)
    return _answered(user, row)


def _answered(user: Answerer, row: QuestionRow) -> Sample:
    found = user.answer(row.context, row.question)
    starts = [start for start in row.answers.answer_start or () if start is not None]
    first = max(0, (starts[0] if starts else found.start) - _AROUND)
    last = (starts[0] + len(row.answers.text[0]) if starts else found.end) + _AROUND
    before, after = "…" if first else "", "…" if last < len(row.context) else ""
    return {
        "Context": f"{before}{row.context[first:last]}{after}",
        "Question": row.question,
        "Answers": " | ".join(dict.fromkeys(row.answers.text)),
        "The model": found.text,
    }


def _beginning(text: str, max_length: int) -> str:
    """Return the first words of a text, at most half of it, so that there is something to go on with."""
    size = max(1, min(max_length, len(text) // 2))
    cut = text[:size]
    return cut.rpartition(" ")[0] or cut
