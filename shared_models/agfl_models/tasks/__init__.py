"""The tasks, found through one union: a new task is one file here and one line below."""

from typing import Annotated

from pydantic import Field

from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tasks.question_answering import QuestionAnsweringConfig
from agfl_models.tasks.summarization import SummarizationConfig
from agfl_models.tasks.translation import TranslationConfig

TaskConfig = Annotated[
    LanguageModelingConfig | TranslationConfig | SummarizationConfig | QuestionAnsweringConfig,
    Field(discriminator="type"),
]

__all__ = ["TaskConfig"]
