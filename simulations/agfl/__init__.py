"""The Python API: simulate a federation, look at its history, use its model. Everything is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agfl.history import History
    from agfl.model import Model, load, serve
    from agfl.population import Population
    from agfl.simulation import simulate
    from agfl_models.layers.layer import Layer
    from agfl_models.tasks.task import Task
    from agfl_protocol.local_trainer import LocalTrainer
    from agfl_protocol.methods.method import Method
    from agfl_server.rounds.observer import Observer as Callback

__all__ = [
    "Callback",
    "History",
    "Layer",
    "LocalTrainer",
    "Method",
    "Model",
    "Population",
    "Task",
    "load",
    "serve",
    "simulate",
]

_PLACES = {
    "Callback": "agfl_server.rounds.observer:Observer",
    "History": "agfl.history:History",
    "Layer": "agfl_models.layers.layer:Layer",
    "LocalTrainer": "agfl_protocol.local_trainer:LocalTrainer",
    "Method": "agfl_protocol.methods.method:Method",
    "Model": "agfl.model:Model",
    "Population": "agfl.population:Population",
    "Task": "agfl_models.tasks.task:Task",
    "load": "agfl.model:load",
    "serve": "agfl.model:serve",
    "simulate": "agfl.simulation:simulate",
}


def __getattr__(name: str) -> object:
    # torch and Flower take seconds to import; a notebook that only looks at a history needs neither.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
