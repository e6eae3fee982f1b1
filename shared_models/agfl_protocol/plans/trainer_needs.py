"""What a run needs of the loop that trains on owners' machines, and a refusal where the named one cannot serve it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agfl_models.errors import BrokenRule
from agfl_protocol.config.trainer_config import Serves
from agfl_protocol.methods.method import Method
from agfl_protocol.methods.registry import METHODS

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan


def refuse_unserved(plan: ClientPlan) -> None:
    """Raise BrokenRule, one line, where a run needs what its trainer cannot do."""
    trainer = plan.training.trainer
    if trainer is None:
        return
    for need, setting in _needs(plan):
        if need not in trainer.serves:
            rule = f"must be one that can serve {setting}"
            raise BrokenRule("AGFL-CONFIG-230", f"training.trainer: {rule}, got {trainer.type}, which cannot")


def _needs(plan: ClientPlan) -> Iterator[tuple[Serves, str]]:
    """Yield what is needed, and what it is needed for, as a person wrote it."""
    training = plan.training
    for config in plan.methods:
        if any(method.config is type(config) and _shapes_gradients(method) for method in METHODS):
            yield Serves.GRADIENTS, f"method {config.type}"
    yield Serves(training.optimizer.type), f"training.optimizer {training.optimizer.type}"
    if training.schedule is not None:
        yield Serves.SCHEDULE, f"training.schedule {training.schedule.type}"
    if plan.elastic is not None:
        yield Serves.WIDTHS, "elastic"
    if plan.aggregation.averaging == "normalized":
        yield Serves.EQUAL_STEPS, "aggregation.averaging normalized"
    if training.local_epochs is not None:
        yield Serves.EPOCHS, "training.local_epochs"
    if training.proximal_mu > 0:
        yield Serves.PROXIMAL, "training.proximal_mu"
    if training.max_grad_norm is not None:
        yield Serves.CLIPPING, "training.max_grad_norm"
    if training.precision == "bfloat16":
        yield Serves.BFLOAT16, "training.precision bfloat16"


def _shapes_gradients(method: type[Method]) -> bool:
    return method.gradient is not Method.gradient
