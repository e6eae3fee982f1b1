"""From a folder to the module that transformers makes of it, in float32, with what is trained marked as such."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import torch

from agfl_models.errors import ConfigError, PretrainedError
from agfl_models.huggingface.folder import PretrainedFolder, transformers_library
from agfl_models.huggingface.lora import add_lora
from agfl_models.model.heads import ClassificationHeadConfig
from agfl_models.model.sequence_model import own_generator

if TYPE_CHECKING:
    from agfl_models.huggingface.config import HuggingFaceConfig

_AUTO_CLASSES = {
    ("causal", "language_model"): "AutoModelForCausalLM",
    ("seq2seq", "language_model"): "AutoModelForSeq2SeqLM",
    ("encoder", "span"): "AutoModelForQuestionAnswering",
    ("encoder", "classification"): "AutoModelForSequenceClassification",
}
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
_ONE_AT_A_TIME = threading.Lock()  # transformers changes functions of its own while it makes a model
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def auto_class(config: HuggingFaceConfig) -> str:
    """Return the name of the class by which transformers loads such a model."""
    head = config.resolve().head
    assert head is not None
    return _AUTO_CLASSES[config.architecture, head.type]


def load(config: HuggingFaceConfig, seed: int | None = None) -> Any:
    """Return the model with its pretrained weights; `seed` draws those of a new head.

    Raises:
        ConfigError: the configuration does not fit the folder, or the extra `huggingface` is not installed.
        PretrainedError: the folder cannot be used.
    """
    folder, auto, library_config = _parts(config)
    with own_generator(seed), _ONE_AT_A_TIME:
        try:
            model, report = auto.from_pretrained(
                folder.path,
                config=library_config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **_LOCAL,
            )
        except Exception as error:  # of many kinds, from as many libraries
            raise folder.error(error) from None
    missing = sorted(name for name in report["missing_keys"] if not _is_new(config, model, name))
    if missing:
        raise PretrainedError(
            "AGFL-PRETRAINED-008", f"pretrained: {folder.path}: weights must hold {missing[0]}, found none"
        )
    return _with_trained_marked(config, model)


def outline(config: HuggingFaceConfig) -> Any:
    """Return the model with the shapes of its weights, and without their content; raises as `load`."""
    folder, auto, library_config = _parts(config)
    with _ONE_AT_A_TIME, torch.device("meta"):
        try:
            model = auto.from_config(library_config, trust_remote_code=False)
        except Exception as error:
            raise folder.error(error) from None
        return _with_trained_marked(config, model)


def max_length(model: Any) -> float:
    """Return for how many positions a module of transformers was made; infinity where it has no last one."""
    most: float = getattr(model.config, "max_position_embeddings", None) or math.inf
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            most -= module.padding_idx + 1  # RoBERTa counts positions from there
    return most


def _parts(config: HuggingFaceConfig) -> tuple[PretrainedFolder, Any, Any]:
    """Return the folder, the class that loads it, and transformers' own configuration, changed as ours says."""
    if config.folder is None:
        raise ConfigError("AGFL-CONFIG-029", "model.folder: required with family huggingface, got none")
    transformers, folder = transformers_library(), PretrainedFolder(config.folder)
    try:
        library_config = transformers.AutoConfig.from_pretrained(folder.path, **_LOCAL)
    except Exception as error:
        raise folder.error(error) from None
    found = _architecture_of(library_config)
    if config.architecture != found:
        name = ", ".join(library_config.architectures or ["model"])
        raise ConfigError(
            "AGFL-CONFIG-030", f"model.architecture: must be {found} for a {name}, got {config.architecture}"
        )
    if config.num_layers is not None:
        _keep_layers(library_config, config.num_layers)
    if isinstance(config.head, ClassificationHeadConfig):
        library_config.num_labels = config.head.num_classes
    return folder, getattr(transformers, auto_class(config)), library_config


def _architecture_of(library_config: Any) -> str:
    if library_config.is_encoder_decoder:
        return "seq2seq"
    names = library_config.architectures or []
    return "causal" if any(name.endswith(_CAUSAL_ENDINGS) for name in names) else "encoder"


def _keep_layers(library_config: Any, num_layers: int) -> None:
    present = library_config.num_hidden_layers
    if num_layers > present:
        raise ConfigError(
            "AGFL-CONFIG-031",
            f"model.num_layers: must be at most {present} for this pretrained model, got {num_layers}",
        )
    library_config.num_hidden_layers = num_layers
    for name in ("num_decoder_layers", "decoder_layers"):
        if getattr(library_config, name, None) is not None:
            setattr(library_config, name, num_layers)
    if getattr(library_config, "layer_types", None):
        library_config.layer_types = library_config.layer_types[:num_layers]


def _is_new(config: HuggingFaceConfig, model: Any, name: str) -> bool:
    """Whether a weight belongs to the head that an encoder gets for its task."""
    return config.architecture == "encoder" and not name.startswith(f"{model.base_model_prefix}.")


def _with_trained_marked(config: HuggingFaceConfig, model: Any) -> Any:
    if config.lora is not None:
        head = [parameter for name, parameter in model.named_parameters() if _is_new(config, model, name)]
        add_lora(model, config.lora)
        for parameter in head:
            parameter.requires_grad_(True)
    return model
