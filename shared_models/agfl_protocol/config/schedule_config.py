"""How the learning rate changes from the first step of a run to its last."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agfl_models.bounded import Factor
from agfl_models.errors import BrokenRule
from agfl_models.validation import Config

Steps = Annotated[int, Field(gt=0, le=1 << 40)]  # of a whole run: its rounds, times local_steps
Share = Annotated[Factor, Field(le=1)]


class WarmupConfig(Config):
    """The rate rises in a line over the first `warmup_steps` steps of the run to `optimizer.lr`, and stays there."""

    type: Literal["warmup"]
    warmup_steps: Steps

    def factor(self, step: int) -> float:
        """Return the rate of a step, from 0, as a share of `optimizer.lr`."""
        return min(1.0, (step + 1) / self.warmup_steps)


class CosineConfig(Config):
    """After the warm-up, if any, the rate falls along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983).

    steps: after so many of the run, those of the warm-up included, it is `floor`, a share of `optimizer.lr`, and stays
    there. The number is not taken from `num_rounds`, which a request may lower and a run that goes on may raise:
    neither may change what an owner's steps are.
    """

    type: Literal["cosine"]
    steps: Steps
    warmup_steps: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    floor: Share = 0.1

    @model_validator(mode="after")
    def _ends_after_warmup(self) -> CosineConfig:
        if self.warmup_steps >= self.steps:
            rule = f"must be below steps = {self.steps}"
            raise BrokenRule("AGFL-CONFIG-256", f"warmup_steps: {rule}, got {self.warmup_steps}")
        return self

    def factor(self, step: int) -> float:
        """Return the rate of a step, from 0, as a share of `optimizer.lr`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        way = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * way)) / 2


ScheduleConfig = Annotated[WarmupConfig | CosineConfig, Field(discriminator="type")]
