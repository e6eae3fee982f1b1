"""The tasks, found through one union: a new task is one file here and one line below."""

from agfl_models.tasks.language_modeling import LanguageModelingConfig

TaskConfig = LanguageModelingConfig

__all__ = ["TaskConfig"]
