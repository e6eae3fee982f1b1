"""Server optimizers for which others have tuned rates."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from agfl_protocol.config.presets import Preset, is_preset, server_settings
from agfl_protocol.optimizers.server_optimizer import OptimizerConfig


class TunedConfig(OptimizerConfig):
    """A method that Reddi et al. 2021 tuned: `preset` fills in what is not stated of `lr` and `tau`."""

    preset: Preset | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if isinstance(data, dict) and is_preset(data.get("preset")) and "type" in data:
            return {**server_settings(data["type"], data["preset"]), **data}
        return data
