"""What owners must know of how their updates are summed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from agfl_models.bounded import LEAST_FACTOR, Factor, FactorOrZero, Owners
from agfl_models.errors import BrokenRule
from agfl_models.validation import Config


class SumsConfig(Config):
    """How updates are summed: all of it is pinned by the plan that an owner approves.

    type: "secure" lets the server learn only the sum; "plain" shows it every owner's update.
    cohort_size: owners asked each round; None asks all that are there.
    min_cohort: a round with fewer updates is repeated, at most `max_attempts` times in all. None takes 2, or with
    "secure" max_colluders + 3, or all if they are fewer. max_colluders: owners that may conspire with the server; None
    takes a third of the roster, at least 1. Every client applies its own owner's bounds, whatever stands here.
    weighting: by predictions trained on (tokens; of question answering, questions), alike ("uniform"), or by the loss
    to the power `fairness_q`, so that the owners whom the model serves worst count most, at most 16 times what others
    do; a loss counts as at most `max_loss` (q-FFL, Li et al. 2020, arXiv:1905.10497, Algorithm 2); or by predictions
    times exp(`alignment_kappa` cos), a factor in [1/3, 3], where cos is between the owner's update and the global
    model's last step ("alignment").
    clip_l2: bound of the L2 norm of one owner's update; "auto" learns it from how many exceed it (`clipping`).
    max_weight: cap of one owner's weight, in predictions; None means one round's `local_steps` batches, of "alignment"
    three times that. averaging: of what clients moved in all, or "normalized", of what they moved in a step, for
    clients that take unequal numbers of them. group_rule: "geometric_median" sums each group of the plan by itself and
    steps by what most of them say, so that one owner's lie decides no round; the server then learns each group's sum.
    """

    type: Literal["secure", "plain"] = "secure"
    cohort_size: Owners | None = None
    min_cohort: Owners | None = None
    max_colluders: Owners | None = None
    max_attempts: Annotated[int, Field(gt=0, le=1000)] = 3
    clip_l2: Factor | Literal["auto"] = "auto"
    weighting: Literal["tokens", "uniform", "loss", "alignment"] = "tokens"
    fairness_q: FactorOrZero = 1.0
    max_loss: Factor = 10.0
    alignment_kappa: FactorOrZero = 1.0
    max_weight: Annotated[float, Field(ge=LEAST_FACTOR, le=1e15)] | None = None
    averaging: Literal["mean", "normalized"] = "mean"
    group_rule: Literal["mean", "geometric_median"] = "mean"

    @model_validator(mode="after")
    def _groups_are_sums(self) -> Self:
        if self.group_rule != "mean" and (self.type == "plain" or self.cohort_size is not None):
            rule = f"group_rule {self.group_rule} needs type secure and no cohort_size"
            raise BrokenRule("AGFL-CONFIG-135", f"{rule}, got {self.type} and {self.cohort_size}")
        return self
