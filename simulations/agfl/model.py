"""A trained model and what it does with text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, overload

from torch import nn

from agfl_models.errors import ConfigError
from agfl_models.files.store import load_model, save_model
from agfl_models.inference import Answerer, Continuer, Rewriter, User, open_model
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.plugins import enable
from agfl_models.tasks import TaskConfig
from agfl_models.tasks.question_answering import Found
from agfl_models.web.facts import model_facts
from agfl_models.web.serve import serve_model

_UserT = TypeVar("_UserT", bound=User)
_TRANSLATE, _SUMMARIZE, _ANSWER, _GENERATE = "translate", "summarize", "answer", "generate"


class Model:
    """A trained model. It does what its task is: another method than the task's is refused.

    Attributes:
        path: the folder that it was read from.
        task: what it was trained for, and how its task decodes.
        module: the PyTorch module, in evaluation mode.
    """

    def __init__(self, path: Path, user: User, task: TaskConfig) -> None:
        self.path, self.task, self._user = path, task, user

    @classmethod
    def from_pretrained(cls, path: Path | str, *, plugins: Sequence[str] = ()) -> Model:
        """Return the model of a model folder, or of a run folder that holds one; arguments and errors as of `load`."""
        enable(plugins)
        return cls(Path(path), *open_model(path))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the model, with the weights that `module` has now, as a folder that `load` and `agfl-model` read.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        _, saved = load_model(self.path)
        weights = trained_parameters(self._user.model)
        save_model(Path(folder), saved.model, weights, saved.task, saved.tokenizer, saved.widths)

    @property
    def module(self) -> nn.Module:
        """The PyTorch module, in evaluation mode."""
        return self._user.model

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
    ) -> str:
        """Return how the model continues `prompt`, without the prompt; the same seed writes the same.

        Args:
            prompt: text to continue.
            max_new_tokens: length of the continuation, at most; 200 if omitted.
            temperature: 0 takes the most probable token; 0.8 if omitted.
            top_k: draw among so many most probable tokens; 40 if omitted.
            seed: of the draws.

        Raises:
            ConfigError: the model is of another task, or a value breaks a rule.
        """
        user = self._as(Continuer, _GENERATE)
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
        return "".join(user.stream(prompt, user.decoding(given), seed))

    @overload
    def translate(self, text: str, **decoding: float) -> str: ...
    @overload
    def translate(self, text: list[str], **decoding: float) -> list[str]: ...
    def translate(self, text: str | list[str], **decoding: float) -> str | list[str]:
        """Return the translation of a text, or of each of several.

        Args:
            text: one text, or several that are written side by side.
            decoding: fields of `GenerationConfig`, such as `num_beams`; the others are as the task evaluates.

        Raises:
            ConfigError: the model is of another task, or a value breaks a rule.
        """
        return self._write(_TRANSLATE, text, decoding)

    @overload
    def summarize(self, text: str, **decoding: float) -> str: ...
    @overload
    def summarize(self, text: list[str], **decoding: float) -> list[str]: ...
    def summarize(self, text: str | list[str], **decoding: float) -> str | list[str]:
        """Return the summary of a text, or of each of several; arguments and errors as of `translate`."""
        return self._write(_SUMMARIZE, text, decoding)

    def answer(self, question: str, context: str) -> Found:
        """Return the part `context[start:end]` that answers a question, and its `text`; "" where nothing does.

        Raises:
            ConfigError: the model is of another task.
        """
        return self._as(Answerer, _ANSWER).answer(context, question)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        return f"Model({str(self.path)!r}: {self.task.type}, {parameters:,} parameters)"

    def _write(self, command: str, text: str | list[str], decoding: dict[str, float]) -> str | list[str]:
        user = self._as(Rewriter, command)
        written = user.write([text] if isinstance(text, str) else text, user.decoding(decoding))
        return written[0] if isinstance(text, str) else written

    def _as(self, kind: type[_UserT], command: str) -> _UserT:
        if self.task.command != command or not isinstance(self._user, kind):
            rule = f"must be a model to {command} with, got one for {self.task.type}"
            raise ConfigError("AGFL-CONFIG-198", f"{self.path}: {rule}; use {self.task.command}")
        return self._user


def load(path: Path | str, *, plugins: Sequence[str] = ()) -> Model:
    """Return the model of a model folder, or of a run folder that holds one.

    Args:
        path: what `agfl-model` takes.
        plugins: installed plug-ins of which the model has parts.

    Raises:
        CheckpointError: a file is missing or corrupt, or the weights do not fit the configuration.
        ConfigError: the model was trained for no task that we know.
    """
    return Model.from_pretrained(path, plugins=plugins)


def serve(path: Path | str, *, host: str = "127.0.0.1", port: int = 8600) -> None:
    """Offer a model to a browser and to programs until an interrupt.

    Args:
        path: what `load` takes.
        host: address to listen on; only this machine reaches 127.0.0.1.
        port: to listen on; 0 takes a free one.

    Raises:
        AgflError: the model cannot be opened, or the address cannot be listened on.
    """
    user, task = open_model(path)
    serve_model(user, model_facts(Path(path), user, task), host, port, exits=False)
