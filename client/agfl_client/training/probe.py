"""What this machine can train: a few real steps of each width of a run's model, on the owner's own data.

Whether that is too much, and so which width it takes part with, is for the owner to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agfl_client.training.part import Part
from agfl_client.training.trainer import train
from agfl_models import machine
from agfl_models.model.rings import Rings
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.randomness import generator

_STEPS = 4  # timed, after one that warms up
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """A width on this machine.

    step_s: seconds of one step of training; memory_bytes: that training takes at most; holds_out: whether the data has
    anything to evaluate on.
    """

    width: float
    num_rings: int
    num_parameters: int
    step_s: float
    memory_bytes: int
    holds_out: bool = True


def measure(config: ClientPlan, data: Path, columns: dict[str, str], device: str, num_threads: int) -> list[Measured]:
    """Return the measurements of each width of the run's model, the narrowest first.

    Raises:
        DataError: the data cannot be used.
    """
    torch.set_num_threads(num_threads)
    if isinstance(config.tokenizer, BPETokenizerConfig) and not config.tokenizer.is_trained:
        config = config.with_merges(())  # what the owners' text will teach can only make sequences shorter
    task = config.build_task()
    dataset = task.prepare(config.task.read(data, columns)[0])
    rings = config.build_rings()
    return [_measure(config, rings, k, task, dataset, device) for k in range(1, config.max_rings + 1)]


def proposed(measured: list[Measured], steps: int, max_seconds: float, free_bytes: int) -> Measured | None:
    """Return the widest whose `steps` steps end in `max_seconds` and fit in memory; None where none does."""
    fitting = [one for one in measured if one.step_s * steps <= max_seconds and one.memory_bytes <= free_bytes]
    return fitting[-1] if fitting else None


def free_memory(device: str) -> int:
    """Return the bytes that are free on the device, of which training may take its part."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory()


def _measure(
    config: ClientPlan, rings: Rings | None, num_rings: int, task: AnyTask, dataset: Dataset[Any], device: str
) -> Measured:
    part = Part.of(config, rings, num_rings, device)
    take = _training(config, part, task, dataset, device)
    take(1)
    started = time.monotonic()
    take(_STEPS)
    seconds = (time.monotonic() - started) / _STEPS
    whole = rings.ring.size if rings is not None else part.layout.size
    moments = {"adamw": 2, "sgd": 1, "delta_sgd": 2}[config.training.optimizer.type]
    # Weights, gradients, the optimizer's state and the weights before training; all whole models that come at a time,
    # and the one that goes.
    weights = (3 + moments) * part.layout.size + (config.max_models + 1) * whole
    memory = weights * _FLOAT_BYTES + _activation_bytes(part, task, dataset, config, device)
    width = 1.0 if config.elastic is None else config.elastic.widths[num_rings - 1]
    holds_out = next(iter(dataset.validation(1, 1)), None) is not None
    return Measured(width, num_rings, part.layout.size, seconds, memory, holds_out)


def _training(
    config: ClientPlan, part: Part, task: AnyTask, dataset: Dataset[Any], device: str
) -> Callable[[int], object]:
    def take(steps: int) -> object:
        training = config.training.model_copy(update={"local_steps": steps, "local_epochs": None})
        rng = generator(config.seed, "probe", steps, "batches")
        work = LocalWork(part.model, part.layout, task, dataset, rng, training, device, widths=part.widths)
        return train(work)

    return take


def _activation_bytes(part: Part, task: AnyTask, dataset: Dataset[Any], config: ClientPlan, device: str) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, each tensor once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = dataset.sample(config.training.batch_size, generator(config.seed, "probe", 0, "batches"))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = task.loss(part.model, batch.to(device))
    weights = {parameter.untyped_storage().data_ptr() for parameter in part.model.parameters()}
    del loss
    return sum(size for place, size in kept.items() if place not in weights)
