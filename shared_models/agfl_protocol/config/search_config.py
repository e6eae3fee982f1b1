"""How a run looks for its architecture: candidates race, and the better ones go on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from agfl_models.bounded import FactorOrZero, Rounds
from agfl_models.errors import BrokenRule
from agfl_models.validation import Config

MAX_CANDIDATES = 16  # each is a run; so many does a server have open at a time


class SearchConfig(Config):
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, Figure 1) over whole architectures.

    slate: names of the candidates; "auto" takes the model as it is configured, every variant of it that has other
    mixers, and what the model's own choices make. rungs: rounds that each rung adds to the training of every candidate
    that is left; None takes an eighth of the run twice, and then the rest. keep: the share of candidates that goes on
    to the next rung, at least one; the configured model, where it takes part, is always among them.
    cost_weight: what a doubling of the FLOPs a token counts beside the loss, in its unit. tie: candidates whose score
    is within this share of the best one's rank by their FLOPs, the cheapest first.
    """

    slate: Literal["auto"] | Annotated[tuple[str, ...], Field(max_length=64, fail_fast=True)] = "auto"
    rungs: Annotated[tuple[Rounds, ...], Field(min_length=1, max_length=64, fail_fast=True)] | None = None
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    cost_weight: FactorOrZero = 0.0
    tie: FactorOrZero = 0.005

    @field_validator("slate", mode="before")
    @classmethod
    def _auto_or_names(cls, slate: Any) -> Any:
        is_list = isinstance(slate, list | tuple) and len(slate) >= 2 and all(isinstance(name, str) for name in slate)
        if slate != "auto" and not is_list:
            raise BrokenRule("AGFL-CONFIG-150", "must be auto, or at least two names")
        return slate

    def rungs_of(self, num_rounds: int) -> tuple[int, ...]:
        """Return the rungs of a race in a run of so many rounds."""
        if self.rungs is not None:
            return self.rungs
        eighth = max(1, num_rounds // 8)
        return (eighth, eighth, num_rounds - 2 * eighth) if num_rounds > 2 * eighth else (num_rounds,)
