"""How a client trains and evaluates in a round."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from agfl_models.bounded import Examples, Factor, FactorOrZero, Rounds
from agfl_models.errors import BrokenRule
from agfl_models.validation import Config
from agfl_protocol.config.schedule_config import ScheduleConfig
from agfl_protocol.config.trainer_config import TRAINERS, TrainerConfig

Beta = Annotated[float, Field(ge=0, lt=1)]  # decay of a moving average


class SGDConfig(Config):
    """Plain SGD on the client."""

    type: Literal["sgd"]
    lr: Factor
    momentum: Beta = 0.0
    weight_decay: FactorOrZero = 0.0


class AdamWConfig(Config):
    """AdamW on the client; its moments start anew each round."""

    type: Literal["adamw"]
    lr: Factor
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: FactorOrZero = 0.1


class DeltaSGDConfig(Config):
    """SGD that finds its own step size (Delta-SGD, Kim et al. 2024, arXiv:2306.11201); it starts anew each round.

    lr: the first step of a round. gamma: how far to trust the measured smoothness. delta: how fast steps may grow.
    """

    type: Literal["delta_sgd"]
    lr: Factor = 0.2
    gamma: Factor = 2.0
    delta: Factor = 0.1


ClientOptimizerConfig = Annotated[SGDConfig | AdamWConfig | DeltaSGDConfig, Field(discriminator="type")]


class TrainingConfig(Config):
    """What a client does in a round: `local_steps` batches, or `local_epochs` passes over its text.

    proximal_mu: pull toward the global model, mu / 2 |x - x_0|^2 beside the loss (FedProx, Li et al. 2020,
    arXiv:1812.06127, Algorithm 2). trainer: the loop that trains; if omitted, the shipped one. schedule: of the rate;
    if omitted, it is `optimizer.lr` in every step.
    """

    trainer: Annotated[TrainerConfig, TRAINERS] | None = None
    optimizer: ClientOptimizerConfig
    schedule: ScheduleConfig | None = None
    proximal_mu: FactorOrZero = 0.0
    batch_size: Annotated[int, Field(gt=0, le=1 << 16)] = 16
    local_steps: Rounds | None = None
    local_epochs: Rounds | None = None
    max_grad_norm: Factor | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingConfig:
        if (self.local_steps is None) == (self.local_epochs is None):
            got = f"{self.local_steps} and {self.local_epochs}"
            raise BrokenRule("AGFL-CONFIG-151", f"exactly one of local_steps and local_epochs must be given, got {got}")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingConfig:
        if self.schedule is None:
            return self
        if isinstance(self.optimizer, DeltaSGDConfig):
            rule = "must be left out with optimizer delta_sgd, which finds its own rate"
            raise BrokenRule("AGFL-CONFIG-257", f"schedule: {rule}, got {self.schedule.type}")
        if self.local_steps is None:  # an epoch has as many steps as an owner has text for
            rule = "needs local_steps, by which a step has the same number at every owner"
            raise BrokenRule("AGFL-CONFIG-258", f"schedule: {rule}, got local_epochs {self.local_epochs}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave what a run does without unsaid, so that one from before there was a choice is the same text."""
        written: dict[str, Any] = content(self)
        for field in ("trainer", "schedule"):
            if getattr(self, field) is None:
                written.pop(field, None)
        return written

    def first_step(self, round_number: int) -> int:
        """Return the number of a round's first step in the run, from 0; rounds count from 1."""
        return (round_number - 1) * (self.local_steps or 0)

    def lr_at(self, step: int) -> float:
        """Return the rate of a step of the run, from 0."""
        return self.optimizer.lr * (1.0 if self.schedule is None else self.schedule.factor(step))


class EvaluationConfig(Config):
    """The global model is evaluated on the owners' validation text every `every` rounds and after the last one.

    max_examples: that each owner draws afresh where evaluation rides along with training, and of all that it holds out
    the most that it evaluates after the last round; of language modeling, sequences.
    """

    every: Rounds = 5
    max_examples: Examples = 128
