"""The commands of agfl-model that use a model on text: translate, summarize, answer, generate."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from agfl_models.errors import ConfigError, DataError
from agfl_models.files import text_io

if TYPE_CHECKING:
    from agfl_models.inference import User

UserT = TypeVar("UserT", bound="User")

BATCH_SIZE = 32  # lines that are written side by side

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or a run folder that holds one.")]
Text = Annotated[str | None, typer.Argument(metavar="[TEXT]", help="A text; without it, lines of standard input.")]
LinesFile = Annotated[Path | None, typer.Option(metavar="PATH", help="A file with one text a line.")]
NumBeams = Annotated[int | None, typer.Option(min=1, help="Hypotheses of beam search; 1 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Length of what is written, at most.")]
LengthPenalty = Annotated[float | None, typer.Option(min=0, max=10, help="Of beam search: more favors longer texts.")]
NoRepeatNgram = Annotated[int | None, typer.Option(min=0, help="No sequence of so many tokens twice; 0 allows it.")]


def translate(
    path: ModelPath,
    text: Text = None,
    file: LinesFile = None,
    num_beams: NumBeams = None,
    max_tokens: MaxTokens = None,
    length_penalty: LengthPenalty = None,
    no_repeat_ngram: NoRepeatNgram = None,
) -> None:
    """Translate a text, or each line of a file or of standard input."""
    given = _decoding(num_beams, max_tokens, length_penalty, no_repeat_ngram)
    _rewrite(path, "translate", text, file, given)


def summarize(
    path: ModelPath,
    text: Text = None,
    file: LinesFile = None,
    num_beams: NumBeams = None,
    max_tokens: MaxTokens = None,
    length_penalty: LengthPenalty = None,
    no_repeat_ngram: NoRepeatNgram = None,
) -> None:
    """Summarize a text, or each line of a file or of standard input."""
    given = _decoding(num_beams, max_tokens, length_penalty, no_repeat_ngram)
    _rewrite(path, "summarize", text, file, given)


def answer(
    path: ModelPath,
    context: Annotated[Path, typer.Option(metavar="PATH|-", help="The text with the answer; - for standard input.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="A question; without it, lines of standard input.")
    ] = None,
) -> None:
    """Answer a question with a part of a text; an empty line says that there is no answer in it."""
    from agfl_models.inference import Answerer

    if context == text_io.STANDARD_INPUT and question is None:
        raise ConfigError(
            "AGFL-CONFIG-039", "QUESTION: required with --context -, since standard input holds the text, got none"
        )
    answerer = _open(path, "answer", Answerer)
    text = text_io.whole(context)
    if not text.strip():
        raise DataError("AGFL-DATA-056", f"--context: {context}: must hold text, got {text[:20]!r}")
    cut = _CutTexts()
    for one in text_io.texts("question", question):
        cut.count(answerer.cuts(one))
        text_io.show([answerer.answer(text, one).text])
    cut.report("questions")


def classify(path: ModelPath, text: Text = None, file: LinesFile = None) -> None:
    """Print the most probable label of a text, or of each line, and how probable it is."""
    from agfl_models.inference import Classifier

    _refuse_both("TEXT", text, file)
    classifier = _open(path, "classify", Classifier)
    cut = _CutTexts()
    is_single = text is not None or (file is None and sys.stdin.isatty())
    lines = iter(text_io.texts("text", text) if is_single else text_io.lines(file or text_io.STANDARD_INPUT))
    while batch := list(islice(lines, 1 if is_single else BATCH_SIZE)):
        for one, found in zip(batch, classifier.classify(batch), strict=True):
            cut.count(classifier.cuts(one))
            label, share = next(iter(found.items()), ("", 0.0))
            text_io.show([f"{label}\t{share:.3f}" if label else ""])  # a line for a line
    cut.report("texts")


def generate(
    path: ModelPath,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to continue; without it, all of standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="PATH", help="A file whose text is continued.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation, at most.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=1, help="Draw among so many most probable tokens.")] = 40,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed writes the same text.")] = 0,
) -> None:
    """Continue a text, printing as it is written."""
    from agfl_models.inference import Continuer

    _refuse_both("PROMPT", prompt, file)
    continuer = _open(path, "generate", Continuer)
    given = {"max_new_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
    decoding = continuer.decoding(given)
    prompts: Iterable[str]
    if prompt is None and (file is not None or not sys.stdin.isatty()):
        prompts = [text_io.whole(file or text_io.STANDARD_INPUT)]
    else:
        prompts = text_io.texts("prompt", prompt)
    for one in prompts:
        written = continuer.stream(one, decoding, seed)  # which refuses before anything is shown
        text_io.show(chain([one], written))


def _rewrite(path: Path, command: str, text: str | None, file: Path | None, given: Mapping[str, float | None]) -> None:
    from agfl_models.inference import Rewriter

    _refuse_both("TEXT", text, file)
    rewriter = _open(path, command, Rewriter)
    decoding = rewriter.decoding(given)
    cut = _CutTexts()
    if text is not None or (file is None and sys.stdin.isatty()):
        for one in text_io.texts("text", text):
            cut.count(rewriter.cuts(one))
            text_io.show(rewriter.stream(one, decoding))
    else:
        lines = text_io.lines(file or text_io.STANDARD_INPUT)
        while batch := list(islice(lines, BATCH_SIZE)):
            for one, written in zip(batch, rewriter.write(batch, decoding), strict=True):
                cut.count(rewriter.cuts(one))
                text_io.show([re.sub(r"[\r\n]+", " ", written)])  # a line for a line
    cut.report("texts")


def _open(path: Path, command: str, kind: type[UserT]) -> UserT:
    """Return what uses the model; a model of another task is refused."""
    from agfl_models.inference import open_model

    user, task = open_model(path)
    if task.command != command:
        fit = f"use agfl-model {task.command}"
        raise ConfigError(
            "AGFL-CONFIG-040", f"{path}: must be a model to {command} with, got one for {task.type}; {fit}"
        )
    assert isinstance(user, kind)
    return user


def _refuse_both(name: str, argument: str | None, file: Path | None) -> None:
    if argument is not None and file is not None:
        raise ConfigError("AGFL-CONFIG-041", f"--file: must not be given beside {name}, got {file}")


def _decoding(
    num_beams: int | None, max_tokens: int | None, length_penalty: float | None, no_repeat_ngram: int | None
) -> dict[str, float | None]:
    return {
        "max_new_tokens": max_tokens,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "no_repeat_ngram": no_repeat_ngram,
    }


class _CutTexts:
    """Counts the texts of which the model reads only the beginning, to say so at the end."""

    def __init__(self) -> None:
        self._cut = self._all = 0

    def count(self, is_cut: bool) -> None:
        self._cut += is_cut
        self._all += 1

    def report(self, what: str) -> None:
        if self._cut:
            line = f"{self._cut} of {self._all} {what} longer than the model reads: their ends made no difference"
            typer.echo(line, err=True)
