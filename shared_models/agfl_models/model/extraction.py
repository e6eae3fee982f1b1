"""From a trained model the narrower one that it holds, as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from agfl_models.errors import ConfigError
from agfl_models.files.durable_files import refuse_content
from agfl_models.files.store import load_model, save_model
from agfl_models.model.config import ResolvedModelConfig
from agfl_models.model.model import AutoGenModel
from agfl_models.model.rings import Rings, outline
from agfl_models.model.sequence_model import trained_parameters


def extract(path: Path, folder: Path, width: float) -> tuple[ResolvedModelConfig, ResolvedModelConfig]:
    """Write the model of `width` that a saved one holds, for the same task and with its tokenizer.

    Args:
        path: a model folder, or a run folder that contains one.
        folder: new or empty.
        width: in (0, 1], at least the least one in which the model was trained; see `ModelConfig.narrowed`.

    Returns:
        The configurations of the whole model and of the one written.

    Raises:
        ConfigError: the width is another one or was not trained, or the model is a pretrained one.
        CheckpointError: the model cannot be read, or the folder has content or cannot be written.
    """
    refuse_content(folder)
    model, saved = load_model(path)
    if not isinstance(model, AutoGenModel):
        rule = "must be decoder, encoder or encoder_decoder to be narrowed"
        raise ConfigError("AGFL-CONFIG-106", f"{path}: model.family: {rule}, got {saved.model.family}")
    narrow = model.config.narrowed(width)
    _refuse_untrained(saved.widths, width)
    widths = (*(one / width for one in saved.widths or () if one < width), 1.0)
    weights = prefix_weights(model, width)
    save_model(folder, narrow, weights, saved.task, saved.tokenizer, widths if len(widths) > 1 else None)
    return model.config, narrow


def _refuse_untrained(trained: Sequence[float] | None, width: float) -> None:
    """What is narrower than all that was trained is worth no more than a model that was not trained at all."""
    if trained is None and width < 1:
        rule = "must be 1 for a model whose config.yaml names no trained `widths`, as a run with `elastic` does"
        raise ConfigError("AGFL-CONFIG-107", f"width: {rule}, got {width:g}")
    if trained is not None and width < min(trained):
        among = ", ".join(f"{one:g}" for one in trained)
        raise ConfigError(
            "AGFL-CONFIG-108", f"width: must be at least the least of the trained widths {among}, got {width:g}"
        )


def prefix_weights(model: AutoGenModel, width: float) -> dict[str, Tensor]:
    """Return by name copies of the weights of `model` that its model of `width` has."""
    held = Rings.of(model.config, sorted({width, 1.0})).held(1)
    whole = torch.cat([parameter.detach().flatten() for parameter in trained_parameters(model).values()])
    narrow = trained_parameters(outline(model.config.narrowed(width)))
    parts = torch.split(whole[torch.from_numpy(held)], [parameter.numel() for parameter in narrow.values()])
    return {
        name: part.view(parameter.shape).clone()  # a file of weights takes no two that share memory
        for (name, parameter), part in zip(narrow.items(), parts, strict=True)
    }
