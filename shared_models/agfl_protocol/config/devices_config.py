"""How fast the owners of a simulation are, how well connected, and how often there, in a time that is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from agfl_models.errors import BrokenRule
from agfl_models.validation import Config

Seconds = Annotated[float, Field(ge=0, le=1e9)]
Above0 = Annotated[float, Field(ge=1e-9, le=1e9)]
Long = Annotated[float, Field(ge=1, le=1e9)]  # seconds; an hour of shorter absences is a list of thousands


class Spread(Config):
    """How a figure differs among owners: log-normal. sigma: of its logarithm; at 0 all owners have the median."""

    median: Above0
    sigma: Annotated[float, Field(ge=0, le=5)] = 0.0


class Availability(Config):
    """Owners are there and away in turn, each time for a time of its own. share: of the time that they are there.

    away_s: how long they are away at a time, in the mean of an exponential distribution.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    away_s: Long


class DevicesConfig(Config):
    """The devices of a simulation's owners, as a spread over all, or one by one.

    seconds_per_step: of one training step; upload_mbit_s, download_mbit_s: of an owner's line; latency_s: of one way;
    availability: None for owners who are always there. trace: instead of all that, a CSV file with the columns
    owner, seconds_per_step, upload_mbit_s, download_mbit_s and away, which is empty or holds spans in seconds since the
    run began, as in 60-90;300-900.
    """

    seconds_per_step: Spread | None = None
    upload_mbit_s: Spread = Spread(median=10)
    download_mbit_s: Spread = Spread(median=50)
    latency_s: Seconds = 0.05
    availability: Availability | None = None
    trace: Path | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> DevicesConfig:
        given = sorted(self.model_fields_set - {"trace", "latency_s"})
        if self.trace is not None and given:
            raise BrokenRule("AGFL-CONFIG-260", f"trace: has the devices one by one, got {', '.join(given)} beside it")
        if self.trace is None and self.seconds_per_step is None:
            raise BrokenRule("AGFL-CONFIG-263", "seconds_per_step: required where there is no trace")
        return self
