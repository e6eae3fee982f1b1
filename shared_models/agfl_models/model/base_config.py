"""What the configuration of every model says: how large it is. A user's own model is any PyTorch module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from agfl_models.errors import ConfigError
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.model.stack_config import Part, settings_of
from agfl_models.registry import Registry
from agfl_models.validation import Config


class ModelConfigBase(Config, ABC):
    """Base of the model families' configurations."""

    family: str

    def resolve(self) -> Self:
        """Return the configuration with its defaults filled in."""
        return self

    @abstractmethod
    def num_parameters(self) -> int:
        """Return the number of parameters that are trained and travel."""

    @abstractmethod
    def flops_per_token(self, context_length: int) -> int:
        """Return the floating-point operations of one forward pass, per position."""

    @abstractmethod
    def parts(self, context_length: int) -> Iterator[Part]:
        """Yield everything that has parameters or costs time."""


FAMILIES = Registry(ModelConfigBase, "family")  # type: ignore[type-abstract]  # it is never called


class OwnModelConfig(ModelConfigBase, ABC):
    """A user's model: `family: Literal[...]`, its settings, and `build`."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the module. Its parameters travel and its buffers do not, so none may change in training."""

    def checked(self) -> nn.Module:
        """Return the module; raises ConfigError where federated training would leave a part of it behind."""
        model = self.build()
        for name, module in model.named_modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                rule = "must have no running statistics, which do not travel (a group norm or layer norm has none)"
                raise ConfigError(
                    "AGFL-CONFIG-094", f"model.{name or self.family}: {rule}, got {type(module).__name__}"
                )
        if not trained_parameters(model):
            raise ConfigError("AGFL-CONFIG-095", f"model.family: {self.family} must have parameters to train, got none")
        return model

    def num_parameters(self) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in trained_parameters(self.checked()).values())

    def flops_per_token(self, context_length: int) -> int:
        """Return 2 for each parameter: what a module does with them is not known."""
        return 2 * self.num_parameters()

    def parts(self, context_length: int) -> Iterator[Part]:
        yield Part(self.family, settings_of(self), self.num_parameters(), self.flops_per_token(context_length))
