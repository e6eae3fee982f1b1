"""The vector that a request has beside the model, where a method needs one."""

from __future__ import annotations

import math

from agfl_models.errors import WireError
from agfl_protocol.config.optimizer_config import ScaffoldConfig
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.update import square_sum


def check_control(config: RunConfig, request: RoundRequest, size: int) -> None:
    """Check a request's `control` against the configuration; the model has `size` parameters.

    Raises:
        WireError: it has another length than the method says, or is not finite.
    """
    sizes: tuple[int, ...] = (0,)
    if request.train and isinstance(config.aggregation.server_optimizer, ScaffoldConfig):
        sizes = (size,)
    elif request.train and config.aggregation.weighting == "alignment":
        sizes = (0, size)  # before the first step there was no other model
    if request.control.size not in sizes:
        rule = " or ".join(map(str, sizes))
        raise WireError(f"control: must have {rule} elements as configured, got {request.control.size}")
    if not math.isfinite(square_sum(request.control)):
        raise WireError("control: must be finite, got NaN or infinity")
