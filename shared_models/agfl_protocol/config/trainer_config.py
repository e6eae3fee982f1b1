"""Which loop trains on an owner's machine, where it is not the shipped one, and what of a run that loop can serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from agfl_models.plugins import GROUPS
from agfl_models.registry import Registry
from agfl_models.validation import Config

if TYPE_CHECKING:
    from agfl_protocol.local_trainer import LocalTrainer


class Serves(StrEnum):
    """What a run may ask of local training beyond the model, the task and `local_steps` batches.

    SGD, ADAMW, DELTA_SGD: `training.optimizer`, of which a run names one. SCHEDULE: `training.schedule`. EPOCHS:
    `training.local_epochs`. PROXIMAL: `training.proximal_mu`. CLIPPING: `training.max_grad_norm`. BFLOAT16:
    `training.precision`. GRADIENTS: what methods make of each gradient, as SCAFFOLD does. EQUAL_STEPS: each step
    moves the model as one of the optimizer does, which `aggregation.averaging: normalized` counts on. WIDTHS:
    `elastic`.
    """

    SGD = "sgd"
    ADAMW = "adamw"
    DELTA_SGD = "delta_sgd"
    SCHEDULE = "schedule"
    EPOCHS = "epochs"
    PROXIMAL = "proximal"
    CLIPPING = "clipping"
    BFLOAT16 = "bfloat16"
    GRADIENTS = "gradients"
    EQUAL_STEPS = "equal_steps"
    WIDTHS = "widths"


class TrainerConfig(Config, ABC):
    """A trainer as a run names it: `type: Literal[...]`, its settings, `serves`, and `build`.

    serves: what it can do; a run that needs more is refused when its configuration is read.
    """

    serves: ClassVar[frozenset[Serves]] = frozenset()

    type: str

    @abstractmethod
    def build(self) -> LocalTrainer:
        """Return the trainer of one round."""


TRAINERS = Registry(TrainerConfig)  # type: ignore[type-abstract]  # it is never called
GROUPS["agfl.trainers"] = TRAINERS.add
