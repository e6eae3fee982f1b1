"""What requests to the JSON endpoint say and what they are answered, with the limits of both."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agfl_models.examples import ENCODABLE, NOT_BLANK
from agfl_models.validation import Config

MAX_CHARACTERS = 20_000
MAX_CONTEXT_CHARACTERS = 200_000
# A prompt is read whole before the first word of its continuation.
MAX_PROMPT_CHARACTERS = 4_000
MAX_TOKENS = 1_000
MAX_BEAMS = 16

MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS, strict=True)]
Source = Annotated[str, Field(max_length=MAX_CHARACTERS), ENCODABLE, NOT_BLANK]


class RewriteRequest(Config):
    """A text to translate or to summarize; what is null is as the task evaluates.

    stream: answer with the text alone, sent as it is written. The others are those of `GenerationConfig`.
    """

    text: Source
    stream: bool = False
    max_tokens: MaxTokens | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS, strict=True)] | None = None
    length_penalty: Annotated[float, Field(ge=0, le=10)] | None = None
    no_repeat_ngram: Annotated[int, Field(ge=0, le=MAX_TOKENS, strict=True)] | None = None

    def decoding(self) -> dict[str, float | None]:
        """Return what is said of how to write, under the names of `GenerationConfig`."""
        given = self.model_dump(include={"num_beams", "length_penalty", "no_repeat_ngram"})
        return {**given, "max_new_tokens": self.max_tokens}


class AnswerRequest(Config):
    """A question about a context."""

    context: Annotated[str, Field(max_length=MAX_CONTEXT_CHARACTERS), ENCODABLE, NOT_BLANK]
    question: Source


class ContinueRequest(Config):
    """A text to continue, which may be empty; what is null is as `agfl-model generate` does.

    stream: answer with the continuation alone, sent as it is written. seed: the same one draws the same text.
    """

    text: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS), ENCODABLE] = ""
    stream: bool = False
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=1, strict=True)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0

    def decoding(self) -> dict[str, float | None]:
        """Return what is said of how to write, under the names of `GenerationConfig`."""
        given = self.model_dump(include={"temperature", "top_k"})
        return {**given, "max_new_tokens": self.max_tokens}


class WrittenReply(Config):
    """What the model wrote. `is_cut` says that it has read only the beginning of the request's text."""

    text: str
    is_cut: bool = False


class AnswerReply(Config):
    """The answer, `context[start:end]` in characters, or "" where the context has none; `is_cut`: of the question."""

    answer: str
    start: int
    end: int
    is_cut: bool


class ClassifyRequest(Config):
    """A text to classify."""

    text: Source


class ClassifyReply(Config):
    """The most probable label, and how probable each is; `is_cut`: of the text."""

    label: str
    probabilities: dict[str, float]
    is_cut: bool


class ErrorReply(Config):
    """What is wrong with a request, in one line, and the code of the rule that it breaks (docs/errors.md)."""

    error: str
    code: str
