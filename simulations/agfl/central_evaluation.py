"""A researcher's own evaluation of the global model, on data that no owner has."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping

import torch
from torch import nn

from agfl_models.errors import ConfigError
from agfl_server.rounds.observer import Observer


class CentralEvaluation(Observer):
    """Adds what a function returns to the row of each round whose model is evaluated; it runs without gradients."""

    def __init__(self, evaluate: Callable[[nn.Module, int], Mapping[str, float]]) -> None:
        self._evaluate = evaluate
        self._name = getattr(evaluate, "__qualname__", type(evaluate).__name__)

    def measured(self, round_number: int, model: Callable[[], nn.Module]) -> Mapping[str, float]:
        """Return the function's numbers.

        Raises:
            ConfigError: it raised, or returned what is no mapping from names to numbers.
        """
        try:
            with torch.no_grad():
                found = self._evaluate(model(), round_number)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(
                "AGFL-CONFIG-194", f"evaluate: {self._name}: must not raise, raised at round {round_number} {what}"
            ) from error
        rule = f"evaluate: {self._name}: must return a mapping from names to numbers, got"
        if not isinstance(found, Mapping):
            raise ConfigError("AGFL-CONFIG-195", f"{rule} {type(found).__name__}")
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, numbers.Real):
                raise ConfigError("AGFL-CONFIG-196", f"{rule} {name!r}: {type(value).__name__}")
        return {name: float(value) for name, value in found.items()}
