"""The model families, found through a registry, and how a model and its tokenizer are made of their configurations."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, overload

from pydantic import BeforeValidator
from torch import nn

from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.model.base_config import FAMILIES, ModelConfigBase, OwnModelConfig
from agfl_models.model.config import ModelConfig
from agfl_models.model.model import AutoGenModel
from agfl_models.model.sequence_model import SequenceModel, own_generator
from agfl_models.tokenizers.tokenizer import HuggingFaceTokenizerConfig, TextTokenizer, TokenizerConfig


def _default_family(model: Any) -> Any:
    # pydantic tells the members of a union apart by `family`, which may be left out.
    return {"family": "decoder", **model} if isinstance(model, dict) else model


AnyModelConfig: TypeAlias = Annotated[ModelConfigBase, FAMILIES, BeforeValidator(_default_family)]


@overload
def build_model(config: ModelConfig | HuggingFaceConfig, seed: int) -> SequenceModel: ...
@overload
def build_model(config: ModelConfigBase, seed: int) -> nn.Module: ...
def build_model(config: ModelConfigBase, seed: int) -> nn.Module:
    """Return the model, its new weights drawn from `seed`.

    Raises:
        ConfigError, PretrainedError: the folder of a pretrained model is missing or does not fit; a user's own module
            holds what would not travel.
    """
    if isinstance(config, ModelConfig):
        return AutoGenModel(config, seed)
    if isinstance(config, HuggingFaceConfig):
        from agfl_models.huggingface.model import HuggingFaceModel

        return HuggingFaceModel(config, seed)
    assert isinstance(config, OwnModelConfig), "a model derives from one of the three"
    with own_generator(seed):
        return config.checked()


def vocabulary_of(config: ModelConfigBase) -> int | None:
    """Return how many tokens a model of text knows, where its configuration says so."""
    return config.vocab_size if isinstance(config, ModelConfig) else None


def build_tokenizer(tokenizer: TokenizerConfig, model: ModelConfigBase) -> TextTokenizer:
    """Return the tokenizer of a model."""
    if not isinstance(tokenizer, HuggingFaceTokenizerConfig):
        return tokenizer.build()
    from agfl_models.huggingface.tokenizer import HuggingFaceTokenizer

    assert isinstance(model, HuggingFaceConfig), "`refuse_misfit` has checked it"
    if model.folder is None:
        raise ConfigError("AGFL-CONFIG-109", "model.folder: required with family huggingface, got none")
    return HuggingFaceTokenizer(PretrainedFolder(model.folder), model.architecture)


def refuse_misfit(tokenizer: TokenizerConfig, model: ModelConfigBase) -> None:
    """Raise BrokenRule unless a pretrained model has its own tokenizer, and no other model has such a one."""
    if isinstance(model, HuggingFaceConfig) and tokenizer.type != "huggingface":
        raise BrokenRule(
            "AGFL-CONFIG-110",
            f"tokenizer.type: must be huggingface with model.family huggingface, got {tokenizer.type}",
        )
    if not isinstance(model, HuggingFaceConfig) and tokenizer.type == "huggingface":
        raise BrokenRule(
            "AGFL-CONFIG-111", f"model.family: must be huggingface with tokenizer.type huggingface, got {model.family}"
        )
