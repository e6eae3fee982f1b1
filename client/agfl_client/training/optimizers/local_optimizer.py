"""The optimizers of local training: PyTorch's, as it is without its compiler, and Delta-SGD."""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch
from torch import nn, optim
from torch.optim import Optimizer

from agfl_client.training.optimizers.delta_sgd import DeltaSGD
from agfl_protocol.config.training_config import DeltaSGDConfig, SGDConfig, TrainingConfig

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def without_compiler(kind: type[OptimizerT]) -> type[OptimizerT]:
    """Return the same optimizer, whose methods do not load PyTorch's compiler to be kept from it.

    That costs each process that trains a second of processor time and 70 MB.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return cast("type[OptimizerT]", type(kind.__name__, (kind,), {**methods, "step": step, "__module__": __name__}))


_SGD, _AdamW, _DeltaSGD = without_compiler(optim.SGD), without_compiler(optim.AdamW), without_compiler(DeltaSGD)


def new_optimizer(training: TrainingConfig, model: nn.Module) -> Optimizer:
    """Return a new optimizer of the configured kind."""
    config = training.optimizer
    if isinstance(config, SGDConfig):
        return _SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    if isinstance(config, DeltaSGDConfig):
        return _DeltaSGD(model.parameters(), config.lr, config.gamma, config.delta)
    return _AdamW(model.parameters(), config.lr, config.betas, weight_decay=config.weight_decay)
