"""How much memory a run takes here, said from its configuration alone, before anything is built.

An estimate on the high side: for ordinary runs, one to five times what `probe` measures. Legend: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Callable

from agfl_models.layers.dot_product import DotProductConfig
from agfl_models.layers.layer import LayerConfigBase
from agfl_models.layers.recurrent import RNNConfig
from agfl_models.model.base_config import ModelConfigBase, OwnModelConfig
from agfl_models.model.config import ModelConfig, ResolvedModelConfig
from agfl_models.model.stack_config import StackConfig
from agfl_models.tasks.sequence_to_sequence import SequenceToSequenceConfig
from agfl_protocol.plans.client_plan import ClientPlan

_FLOAT_BYTES = 4
_MOMENTS = {"adamw": 2, "sgd": 1, "delta_sgd": 2}
_SUM = 10  # copies of the whole model, about, that clipping, rounding and masking an update take


class _OfLastPlan:
    """Numbers of the plan that was asked about last, by name and rings: all nodes of a process are put the same one.

    They follow from the plan alone, and a user's module is built to be counted.
    """

    def __init__(self) -> None:
        self._kept: tuple[ClientPlan | None, dict[tuple[str, int], int]] = (None, {})

    def get(self, config: ClientPlan, name: str, num_rings: int, make: Callable[[], int]) -> int:
        """Return a number of this very plan, made where it is not known."""
        plan, found = self._kept
        if plan is not config:
            found = {}
            self._kept = config, found
        if (name, num_rings) not in found:
            found[name, num_rings] = make()
        return found[name, num_rings]


_LAST = _OfLastPlan()


def part_size(config: ClientPlan, num_rings: int) -> int:
    """Return the number of parameters of the first rings of a run's model."""
    return _LAST.get(config, "size", num_rings, lambda: config.narrowed_model(num_rings).num_parameters())


def estimate(config: ClientPlan, num_rings: int) -> int:
    """Return the bytes that training the first rings of a run's model takes, with all that a round holds beside it."""
    return _LAST.get(config, "bytes", num_rings, lambda: _estimate(config, num_rings))


def _estimate(config: ClientPlan, num_rings: int) -> int:
    part, whole = config.narrowed_model(num_rings), config.model
    size = part_size(config, num_rings)
    weights = (4 + _MOMENTS[config.training.optimizer.type]) * size
    weights += (config.max_models + _SUM) * (size if part is whole else whole.num_parameters())
    # Of a user's module: as much as if each weight made a number of its own.
    floats = size if isinstance(part, OwnModelConfig) else _floats_of_example(config, part)
    return _FLOAT_BYTES * (weights + config.training.batch_size * floats)


def trained_bytes(config: ClientPlan, num_rings: int) -> int:
    """Return the bytes of a model's trained weights with their gradient and what its optimizer keeps of them."""
    numbers = 2 + _MOMENTS[config.training.optimizer.type]
    return _FLOAT_BYTES * numbers * config.narrowed_model(num_rings).num_parameters()


def _floats_of_example(config: ClientPlan, model: ModelConfigBase) -> int:
    """Return the numbers that one example of a batch has in memory when the backward pass begins."""
    task = config.task
    if not isinstance(model, ModelConfig):
        # Counted by its matrix products: what flows out of a layer is about as much as their work over their width.
        return task.context_length * max(1, model.flops_per_token(task.context_length) // 64)
    resolved = model.resolve()
    if not isinstance(task, SequenceToSequenceConfig):
        return _floats(resolved, resolved.stack, task.context_length, task.context_length)
    encoder = resolved.encoder_stack
    assert encoder is not None, "`ClientPlan` has checked it"
    read = _floats(resolved, encoder, task.source_length, task.source_length, has_head=False)
    write = _floats(resolved, resolved.stack, task.target_length, task.context_length)
    return read + max(1, task.num_beams) * write


def _floats(model: ResolvedModelConfig, stack: StackConfig, length: int, seen: int, has_head: bool = True) -> int:
    """Return the numbers of a stack over `length` positions that look at `seen` others."""
    of_token = 4 * model.dim
    for place in stack.places():
        of_token += 3 * sum(place.widths) + _inner(place.layer, seen)
    if has_head:
        of_token += 4 * (model.vocab_size or 2 * stack.width_out)
    return length * of_token


def _inner(layer: LayerConfigBase, seen: int) -> int:
    """Return the numbers of one position inside a layer."""
    if isinstance(layer, DotProductConfig):
        return 4 * (layer.width_inner + layer.width_kv) + (layer.num_heads or 1) * seen
    if isinstance(layer, RNNConfig):
        return layer.num_directions * (48 if layer.cell == "gated_delta" else 16) * layer.width_hidden
    return 5 * int(getattr(layer, "hidden_dim", 0) or layer.width_out)
