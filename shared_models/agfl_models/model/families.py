"""The model families, found through one union, and how a model and its tokenizer are made of their configurations."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from agfl_models.errors import ConfigError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.model.config import ModelConfig
from agfl_models.model.model import AutoGenModel
from agfl_models.model.sequence_model import SequenceModel
from agfl_models.tokenizers.tokenizer import HuggingFaceTokenizerConfig, TextTokenizer, TokenizerConfig


def _default_family(model: Any) -> Any:
    # pydantic tells the members of a union apart by `family`, which may be left out.
    return {"family": "decoder", **model} if isinstance(model, dict) else model


AnyModelConfig: TypeAlias = Annotated[
    Annotated[ModelConfig | HuggingFaceConfig, Field(discriminator="family")], BeforeValidator(_default_family)
]


def build_model(config: ModelConfig | HuggingFaceConfig, seed: int) -> SequenceModel:
    """Return the model, its new weights drawn from `seed`.

    Raises:
        ConfigError, PretrainedError: the folder of a pretrained model is missing or does not fit.
    """
    if isinstance(config, ModelConfig):
        return AutoGenModel(config, seed)
    from agfl_models.huggingface.model import HuggingFaceModel

    return HuggingFaceModel(config, seed)


def build_tokenizer(tokenizer: TokenizerConfig, model: ModelConfig | HuggingFaceConfig) -> TextTokenizer:
    """Return the tokenizer of a model."""
    if not isinstance(tokenizer, HuggingFaceTokenizerConfig):
        return tokenizer.build()
    from agfl_models.huggingface.tokenizer import HuggingFaceTokenizer

    assert isinstance(model, HuggingFaceConfig), "`refuse_misfit` has checked it"
    if model.folder is None:
        raise ConfigError("model.folder: required with family huggingface, got none")
    return HuggingFaceTokenizer(PretrainedFolder(model.folder), model.architecture)


def refuse_misfit(tokenizer: TokenizerConfig, model: ModelConfig | HuggingFaceConfig) -> None:
    """Raise ValueError unless a pretrained model has its own tokenizer, and no other model has such a one."""
    if isinstance(model, HuggingFaceConfig) and tokenizer.type != "huggingface":
        raise ValueError(f"tokenizer.type: must be huggingface with model.family huggingface, got {tokenizer.type}")
    if isinstance(model, ModelConfig) and tokenizer.type == "huggingface":
        raise ValueError(f"model.family: must be huggingface with tokenizer.type huggingface, got {model.family}")
