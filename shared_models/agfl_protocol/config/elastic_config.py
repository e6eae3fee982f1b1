"""The `elastic` section: one model in several widths, so that unequal devices train the same federation's model."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from agfl_models.bounded import Rounds
from agfl_models.errors import BrokenRule
from agfl_models.validation import Config
from agfl_protocol.secagg.rings import MAX_RINGS

Width = Annotated[float, Field(gt=0, le=1)]


class GrowthConfig(Config):
    """Rings are opened one after the other, and the last one is closed again if it does not pay.

    patience: evaluations without a better validation loss after which the model grows; min_gain: relative gain of the
    loss below which it counts as none, of the whole model over time as of its widest ring over the model without it.
    """

    patience: Rounds = 2
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.002


class WidthsConfig(Config):
    """Widths in which the model is trained; each owner trains the widest that its device holds.

    widths: shares of the inner width of every layer, ascending, the last one 1. A narrower model is the beginning of a
    wider one; what a width has more than the one before is its ring.
    """

    widths: Annotated[tuple[Width, ...], Field(min_length=2, max_length=MAX_RINGS)] = (0.25, 0.5, 1.0)

    @field_validator("widths")
    @classmethod
    def _ascending_to_one(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(widths)) or widths[-1] != 1:
            raise BrokenRule("AGFL-CONFIG-136", "must ascend to 1.0")
        return widths


class ElasticConfig(WidthsConfig):
    """What the server does with the widths, which no client needs to know.

    shrinkage: lambda in [0, 1]. Of a ring that owners with weight C of W train, the step is their mean times
    C / (C + lambda (W - C)): 0 is HeteroFL (Diao et al. 2021, arXiv:2010.01264), 1 counts all others as zeros.
    growth: None opens every ring from the start.
    """

    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.5
    growth: GrowthConfig | None = None
