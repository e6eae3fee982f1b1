"""The tasks: each is one file here, which registers its configuration, and one line below that imports it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from agfl_models.model.families import AnyModelConfig, build_tokenizer
from agfl_models.tasks import language_modeling as language_modeling
from agfl_models.tasks import question_answering as question_answering
from agfl_models.tasks import summarization as summarization
from agfl_models.tasks import text_classification as text_classification
from agfl_models.tasks import translation as translation
from agfl_models.tasks.config import TASKS, TaskConfigBase, TextTaskConfig
from agfl_models.tasks.own_task import OwnTask, OwnTaskConfig
from agfl_models.tasks.task import AnyTask
from agfl_models.tokenizers.tokenizer import TokenizerConfig

TaskConfig: TypeAlias = Annotated[TaskConfigBase, TASKS]
TaskName: TypeAlias = Annotated[str, AfterValidator(TASKS.known)]


def build_task(config: TaskConfigBase, tokenizer: TokenizerConfig, model: AnyModelConfig) -> AnyTask:
    """Return the task; only one on text has a tokenizer."""
    if isinstance(config, TextTaskConfig):
        return config.build(build_tokenizer(tokenizer, model))
    assert isinstance(config, OwnTaskConfig), "a task derives from one or the other"
    return OwnTask(config)
