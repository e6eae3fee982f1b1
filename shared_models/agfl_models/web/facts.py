"""What `GET /v1/model` tells of a model."""

from __future__ import annotations

from pathlib import Path

from agfl_models.files.durable_files import read_json_lines
from agfl_models.files.store import METRICS_FILE
from agfl_models.inference import User
from agfl_models.tasks import TaskConfig
from agfl_models.tokenizers.tokenizer import TextTokenizer, Tokenizer
from agfl_models.validation import Config


class ModelFacts(Config):
    """A model's task and the endpoint that does it, its size, and how good it was when its run ended, if known."""

    task: TaskConfig
    endpoint: str
    parameters: int
    tokenizer: str
    vocabulary: int
    metrics: dict[str, float]


def model_facts(path: Path, user: User, task: TaskConfig) -> ModelFacts:
    """Return the facts of a model that was opened from `path`.

    Raises:
        CheckpointError: the run's metrics are unreadable or malformed.
    """
    return ModelFacts(
        task=task,
        endpoint=f"/v1/{task.command}",
        parameters=sum(parameter.numel() for parameter in user.model.parameters()),
        tokenizer=_description(user.task.tokenizer),
        vocabulary=user.task.tokenizer.vocab_size,
        metrics=_last_evaluation(path / METRICS_FILE, user.task.metrics),
    )


def _description(tokenizer: TextTokenizer) -> str:
    if not isinstance(tokenizer, Tokenizer):
        return "of the pretrained model"
    return f"byte-level BPE, {len(tokenizer.merges):,} merges" if tokenizer.merges else "bytes"


def _last_evaluation(file: Path, names: tuple[str, ...]) -> dict[str, float]:
    """Return what a run's last evaluation found; nothing beside a model without its run."""
    rows = read_json_lines(file) if file.exists() else []
    wanted = [name for name in names if name.startswith("eval/")]
    found = [{name: row[name] for name in wanted if row.get(name) is not None} for row in rows]
    return next((metrics for metrics in reversed(found) if metrics), {})
