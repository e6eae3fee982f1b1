"""A trained model on disk: `model.safetensors` is the weights, `config.yaml` all else that using them needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from agfl_models.errors import BrokenRule, CheckpointError, ConfigError
from agfl_models.files.durable_files import not_read, not_written, write_atomically
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.files.store_files import CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, WEIGHTS_FILE
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import AnyModelConfig, build_model, refuse_misfit, vocabulary_of
from agfl_models.model.rings import outline
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.plugins import MAX_PLUGINS, Plugin, enable, is_enabled
from agfl_models.registry import plugins_used
from agfl_models.tasks import TaskConfig
from agfl_models.tokenizers.tokenizer import BytesTokenizerConfig, TokenizerConfig
from agfl_models.validation import Config, dump_yaml, read_yaml, validate
from agfl_models.version import VERSION, written_by

__all__ = [
    "CONFIG_FILE",
    "METRICS_FILE",
    "MODEL_FOLDER",
    "WEIGHTS_FILE",
    "SavedConfig",
    "load_model",
    "save_model",
]
_BYTES = BytesTokenizerConfig()


def _named(task: Any) -> Any:
    """Accept the bare name that was written here before tasks had settings that matter to who uses the model."""
    return {"type": task} if isinstance(task, str) else task


def _refuse_disabled(plugins: tuple[Plugin, ...]) -> tuple[Plugin, ...]:
    """Whoever uses a model enables its plug-ins; another version of one may do."""
    for plugin in plugins:
        if not is_enabled(plugin.name):
            how = f"agfl-model --plugin {plugin.name} before the command, or plugins=[{plugin.name!r}] of agfl.load"
            raise BrokenRule("AGFL-CONFIG-219", f"{plugin} must be enabled to use this model ({how}), got it disabled")
    return plugins


_PluginsOfModel = Annotated[tuple[Plugin, ...], Field(max_length=MAX_PLUGINS), AfterValidator(_refuse_disabled)]


class SavedConfig(Config):
    """Content of `config.yaml`: what is needed to use the weights. Without a task they only compute.

    version: of the agfl that wrote it, where that is known.
    widths: in which the model was trained, ascending to 1; None of one that was trained whole only.
    plugins: of which the model or its task are parts, as they were when it was trained.
    """

    plugins: _PluginsOfModel | None = None
    version: Annotated[str, Field(max_length=64)] | None = None
    model: AnyModelConfig
    task: Annotated[TaskConfig | None, BeforeValidator(_named)] = None
    tokenizer: TokenizerConfig = _BYTES
    widths: (
        Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=2, max_length=64, fail_fast=True)]
        | None
    ) = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse_misfit(self.tokenizer, self.model)
        if self.task is None:
            return self
        self.task.check_model(self.model)
        vocab_size = vocabulary_of(self.model)
        if vocab_size not in (None, self.tokenizer.vocab_size):
            rule = f"must be {self.tokenizer.vocab_size} as tokenizer.vocab_size"
            raise BrokenRule("AGFL-CONFIG-014", f"model.vocab_size: {rule}, got {vocab_size}")
        if not self.tokenizer.is_trained:
            raise BrokenRule("AGFL-CONFIG-015", "tokenizer.merges: required beside weights, got none")
        return self


def save_model(
    folder: Path,
    model_config: AnyModelConfig,
    state_dict: Mapping[str, Tensor],
    task: TaskConfig | None = None,
    tokenizer: TokenizerConfig = _BYTES,
    widths: tuple[float, ...] | None = None,
) -> None:
    """Write a model folder; each file appears whole or not at all, and equal weights give equal bytes.

    The configuration is written with its defaults filled in, so that the model outlives a change of defaults.

    Args:
        folder: created if missing.
        model_config: architecture that the weights belong to.
        state_dict: the weights that are trained: of an adapted model the adapter.
        task: what the model was trained for, and the lengths that it learned; None for a task that we do not know.
        tokenizer: what the model's token ids mean.
        widths: in which the model was trained; None where that is the whole one only.

    Raises:
        ConfigError: task or tokenizer do not fit the model.
        CheckpointError: the folder cannot be written.
    """
    content = {
        "version": VERSION,
        "model": model_config.resolve(),
        "task": task,
        "tokenizer": tokenizer,
        "widths": widths,
    }
    saved = validate(SavedConfig, content, str(folder)).model_dump(mode="json", exclude_none=True)
    with plugins_used() as used:
        validate(SavedConfig, saved, str(folder))
    if used:
        saved = {"plugins": [plugin.model_dump() for plugin in enable(used)], **saved}
    description = dump_yaml(saved)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS_FILE, save(weights))
        write_atomically(folder / CONFIG_FILE, description.encode("utf-8"))
    except OSError as error:
        raise not_written(folder, error) from None


def load_model(path: Path) -> tuple[nn.Module, SavedConfig]:
    """Return the model and its description.

    Args:
        path: a model folder, or a run folder that contains one called `model`.

    Raises:
        CheckpointError: a file is missing or corrupt, or the weights do not fit the configuration.
        ConfigError, PretrainedError: the pretrained model that they adapt is missing, or has changed.
    """
    folder = path / MODEL_FOLDER if (path / MODEL_FOLDER / CONFIG_FILE).exists() else path
    if path.is_file():
        raise CheckpointError("AGFL-CHECKPOINT-006", f"{path}: must be a folder with a model, is a file")
    found: Any = None
    try:
        found = read_yaml(folder / CONFIG_FILE)
        saved = validate(SavedConfig, found, str(folder / CONFIG_FILE))
    except ConfigError as error:
        if (folder / WEIGHTS_FILE).exists():
            raise CheckpointError.of(error, f"{error.sentence}{_other_version(found)}") from None
        if hint := folder_hint(path):
            raise CheckpointError("AGFL-CHECKPOINT-007", f"{path}: must be a folder with a model{hint}") from None
        raise CheckpointError.of(error, error.sentence) from None
    weights = _read_weights(folder / WEIGHTS_FILE)
    if isinstance(saved.model, HuggingFaceConfig):
        saved.model.pinned(saved.model.folder, f"{folder / CONFIG_FILE}: model.folder")
    elif isinstance(saved.model, ModelConfig):
        # Before it is built: a configuration of a few lines can ask for more memory than there is.
        _refuse_misfit(folder / WEIGHTS_FILE, weights, trained_parameters(outline(saved.model)))
    model = build_model(saved.model, seed=0)
    parameters = trained_parameters(model)
    _refuse_misfit(folder / WEIGHTS_FILE, weights, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return model, saved


def _other_version(found: Any) -> str:
    """Return who wrote a description that cannot be read, if another version did."""
    version = found.get("version") if isinstance(found, Mapping) else None
    if not isinstance(version, str) or version == VERSION or not version.isprintable():
        return ""
    return f"; it {written_by(version[:64])}"


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise not_read(path, error) from None
    except SafetensorError as error:
        raise CheckpointError("AGFL-CHECKPOINT-008", f"{path}: corrupt: {error}") from None


def _refuse_misfit(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise CheckpointError("AGFL-CHECKPOINT-009", f"{path}: {name}: required by the configuration but missing")
        if name not in expected:
            raise CheckpointError("AGFL-CHECKPOINT-010", f"{path}: {name}: not part of the configured model")
        want, got = tuple(expected[name].shape), tuple(weights[name].shape)
        if want != got:
            raise CheckpointError("AGFL-CHECKPOINT-011", f"{path}: {name}: must have shape {want}, got {got}")
