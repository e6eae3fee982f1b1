"""What the configuration of every task says; those of text tasks need a tokenizer beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from agfl_models.examples import Row, read_data
from agfl_models.model.families import AnyModelConfig
from agfl_models.reading.survey import Survey
from agfl_models.registry import Registry
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.task import AnyTask, MainMetric
from agfl_models.tokenizers.tokenizer import TextTokenizer
from agfl_models.validation import Config


class TaskConfigBase(Config, ABC):
    """Base of the tasks' configurations.

    row: what the task's rows are; main_metric: what a person looks at first; command: of `agfl-model`, that uses the
    model, None where none does. validation_fraction: share of an owner's sources that is held out.
    """

    row: ClassVar[type[Row]]
    main_metric: ClassVar[MainMetric]
    command: ClassVar[str | None] = None

    type: str
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1

    if TYPE_CHECKING:  # a task may have them as fields

        @property
        def max_predictions(self) -> int:
            """Most predictions of one example: how much it can weigh."""

        @property
        def context_length(self) -> int:
            """Most positions of one example that a model looks at."""

    def read(self, path: Path, columns: Mapping[str, str] | None = None) -> tuple[list[Any], Survey]:
        """Return an owner's rows and what they were found in; raises as `read_data`."""
        return read_data(path, self.row, columns)

    def training_texts(self, rows: Sequence[Row]) -> list[str]:
        """Return the text that is trained on: a tokenizer, too, may learn from nothing else."""
        return [text for row in split_rows(rows, self.validation_fraction)[0] for text in row.texts]

    def check_model(self, model: AnyModelConfig) -> None:
        """Raise ValueError unless the task can train `model`; any will do where a task does not ask."""
        return


TASKS = Registry(TaskConfigBase)


class TextTaskConfig(TaskConfigBase, ABC):
    """Base of the tasks on text, whose model reads tokens."""

    @abstractmethod
    def build(self, tokenizer: TextTokenizer) -> AnyTask:
        """Return the task."""
