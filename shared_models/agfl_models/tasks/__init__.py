"""The tasks, found through one union: a new task is one file here, and its name and configuration below."""

from typing import Annotated, Literal

from pydantic import Field

from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tasks.question_answering import QuestionAnsweringConfig
from agfl_models.tasks.summarization import SummarizationConfig
from agfl_models.tasks.translation import TranslationConfig

TaskConfig = Annotated[
    LanguageModelingConfig | TranslationConfig | SummarizationConfig | QuestionAnsweringConfig,
    Field(discriminator="type"),
]

TaskName = Literal["language_modeling", "translation", "summarization", "question_answering"]

__all__ = ["TaskConfig", "TaskName"]
