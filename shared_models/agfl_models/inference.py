"""What a trained model does with text: the one way in which the commands, the server and the page use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from agfl_models.errors import ConfigError
from agfl_models.files.store import load_model
from agfl_models.layers.layer import Memory
from agfl_models.machine import usable_cpus
from agfl_models.model.generation import GenerationConfig, room, stream
from agfl_models.model.sequence_model import SequenceModel, decoding
from agfl_models.tasks import TaskConfig, build_task
from agfl_models.tasks.dataset import pad, real_positions
from agfl_models.tasks.language_modeling import LanguageModeling
from agfl_models.tasks.question_answering import NOT_FOUND, Found, QuestionAnswering, QuestionRow
from agfl_models.tasks.sequence_to_sequence import SequenceToSequence
from agfl_models.tasks.task import AnyTask
from agfl_models.tasks.text_classification import TextClassification
from agfl_models.validation import validate


@dataclass(frozen=True)
class Rewriter:
    """Writes one text for another: translates or summarizes. A blank text becomes an empty one."""

    model: SequenceModel
    task: SequenceToSequence

    def decoding(self, given: Mapping[str, float | None]) -> GenerationConfig:
        """Return how to write; what is not given, or None, is as the task evaluates.

        Raises:
            ConfigError: names the field, the rule and the value.
        """
        return _changed(self.task.decoding, given)

    def write(self, texts: Sequence[str], decoding: GenerationConfig) -> list[str]:
        """Return what the model writes for each text."""
        written = [""] * len(texts)
        places = [i for i, text in enumerate(texts) if text.strip()]
        if places:
            sources = [self.task.encode_source(texts[i]) for i in places]
            source, mask = pad(sources, self.task.tokenizer.pad_id), real_positions(sources)
            with torch.no_grad():
                found = self.task.write(self.model, source, mask, decoding)
            for i, text in zip(places, found, strict=True):
                written[i] = text
        return written

    def stream(self, text: str, decoding: GenerationConfig) -> Iterator[str]:
        """Yield what `write` returns for one text, piece by piece as it is written; with several beams, at the end."""
        if not text.strip():
            return
        tokenizer = self.task.tokenizer
        new_ids = stream(self.model, [tokenizer.bos_id], decoding, eos_id=tokenizer.eos_id, memory=self._read(text))
        yield from tokenizer.decode_stream(new_ids)

    def cuts(self, text: str) -> bool:
        """Whether the model reads only the beginning of the text."""
        return self.task.cuts(text)

    def _read(self, text: str) -> Memory:
        sources = [self.task.encode_source(text)]
        with torch.no_grad():
            return self.model.encode(pad(sources, self.task.tokenizer.pad_id), real_positions(sources))


@dataclass(frozen=True)
class Answerer:
    """Answers a question with a part of a context."""

    model: SequenceModel
    task: QuestionAnswering

    def answer(self, context: str, question: str) -> Found:
        """Return the answer and where it stands; none to a blank question, or in a blank context."""
        if not (context.strip() and question.strip()):
            return NOT_FOUND
        row = QuestionRow.model_validate({"context": context, "question": question, "answers": ""})
        with torch.no_grad():
            (found,) = self.task.answer(self.model, self.task.collate([self.task.example(row)]))
        return found

    def cuts(self, question: str) -> bool:
        """Whether the model reads only the beginning of the question; a context is read whole."""
        return self.task.cuts(question)


@dataclass(frozen=True)
class Continuer:
    """Continues a text."""

    model: SequenceModel
    task: LanguageModeling

    def decoding(self, given: Mapping[str, float | None]) -> GenerationConfig:
        """Return how to write; raises ConfigError as `Rewriter.decoding`."""
        return _changed(GenerationConfig(max_new_tokens=200, temperature=0.8, top_k=40), given)

    def stream(self, prompt: str, decoding: GenerationConfig, seed: int = 0) -> Iterator[str]:
        """Return the continuation of `prompt`, which may be empty, as it is written; the same seed draws the same.

        Raises:
            ConfigError: the model cannot read so long a prompt; at once, before anything is written.
        """
        tokenizer = self.task.tokenizer
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        room(self.model, ids)
        drawn = torch.Generator().manual_seed(seed)
        return tokenizer.decode_stream(stream(self.model, ids, decoding, eos_id=tokenizer.eos_id, generator=drawn))


@dataclass(frozen=True)
class Classifier:
    """Says which label a text has."""

    model: SequenceModel
    task: TextClassification

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return how probable each label is of each text, the most probable first; of a blank text nothing."""
        found: list[dict[str, float]] = [{} for _ in texts]
        places = [i for i, text in enumerate(texts) if text.strip()]
        if places:
            with torch.no_grad():
                for i, one in zip(places, self.task.probabilities(self.model, [texts[i] for i in places]), strict=True):
                    found[i] = one
        return found

    def cuts(self, text: str) -> bool:
        """Whether the model reads only the beginning of the text."""
        return self.task.cuts(text)


User: TypeAlias = Rewriter | Answerer | Continuer | Classifier


def open_model(path: Path | str) -> tuple[User, TaskConfig]:
    """Return what uses the model, and its task.

        user, task = open_model("runs/german")
        user.write(["Set target temperature."], user.decoding({"num_beams": 4}))

    Args:
        path: a model folder, or a run folder that holds one.

    Raises:
        CheckpointError: as `load_model`.
        ConfigError: the model was trained for no task that we know, or for a user's own.
    """
    model, task, config = load_task(path)
    user = user_of(model, task)
    if user is None:
        raise ConfigError(
            "AGFL-CONFIG-134", f"{path}: task: must be one on text, which a command can use, got {config.type}"
        )
    return user, config


def load_task(path: Path | str) -> tuple[nn.Module, AnyTask, TaskConfig]:
    """Return a trained model, its task, and the task's configuration; raises as `open_model`."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    model, saved = load_model(Path(path))
    if saved.task is None:
        raise ConfigError("AGFL-CONFIG-038", f"{path}: task: required to use the model, got none")
    return model.eval(), build_task(saved.task, saved.tokenizer, saved.model), saved.task


def user_of(model: nn.Module, task: AnyTask) -> User | None:
    """Return what uses a model on text; None for a user's own task."""
    if isinstance(task, SequenceToSequence):
        return Rewriter(decoding(model), task)
    if isinstance(task, QuestionAnswering):
        return Answerer(decoding(model), task)
    if isinstance(task, TextClassification):
        return Classifier(decoding(model), task)
    return Continuer(decoding(model), task) if isinstance(task, LanguageModeling) else None


def _changed(decoding: GenerationConfig, given: Mapping[str, float | None]) -> GenerationConfig:
    content = decoding.model_dump() | {name: value for name, value in given.items() if value is not None}
    return validate(GenerationConfig, content, "decoding")
