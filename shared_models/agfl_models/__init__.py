"""The modular model: layers, tasks, tokenizers, corpora. Pure PyTorch; no Flower, no cryptography."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agfl_models.layers.attention import AttentionLayer
    from agfl_models.layers.cross_attention import CrossAttentionLayer
    from agfl_models.layers.feed_forward import FFLayer
    from agfl_models.layers.recurrent import RNNLayer
    from agfl_models.model.config import ModelConfig
    from agfl_models.model.model import AutoGenModel

__all__ = ["AttentionLayer", "AutoGenModel", "CrossAttentionLayer", "FFLayer", "ModelConfig", "RNNLayer"]

_MODULES = {
    "AttentionLayer": "agfl_models.layers.attention",
    "AutoGenModel": "agfl_models.model.model",
    "CrossAttentionLayer": "agfl_models.layers.cross_attention",
    "FFLayer": "agfl_models.layers.feed_forward",
    "ModelConfig": "agfl_models.model.config",
    "RNNLayer": "agfl_models.layers.recurrent",
}


def __getattr__(name: str) -> object:
    # Imported on first use, because torch takes a second to import and `--help` should not wait for it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
