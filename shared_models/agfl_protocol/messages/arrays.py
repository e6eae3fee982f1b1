"""What methods broadcast beside the model, held against what the client plan says that it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import WireError
from agfl_protocol.methods.method import ArraySpec, States
from agfl_protocol.methods.registry import arrays_of, known_methods
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import square_sum


def check_arrays(plan: ClientPlan, arrays: States, size: int, *, train: bool) -> None:
    """Check the arrays of a request whose model has `size` parameters.

    Raises:
        WireError: one is missing, or is not what its method says; or there is another one.
    """
    wanted = arrays_of(plan, size, train=train)
    names = {(method, name) for method, specs in wanted.items() for name in specs}
    got = {(method, name) for method, own in arrays.items() for name in own}
    for method, name in sorted(names ^ got):
        rule = "required but missing" if (method, name) in names else "must not be there as configured"
        raise WireError("AGFL-WIRE-018", f"{method}/{name}: {rule}")
    for method, specs in wanted.items():
        for name, spec in specs.items():
            _check(f"{method}/{name}", arrays[method][name], spec)
    for one in known_methods(plan):
        if one.name in wanted:
            one.refuse_arrays(plan, arrays[one.name])


def most_bytes(plan: ClientPlan, size: int, *, train: bool) -> int:
    """Return the most bytes that the arrays of a request can have."""
    specs = (spec for own in arrays_of(plan, size, train=train).values() for spec in own.values())
    return sum(_ends(spec.sizes)[1] * np.dtype(spec.dtype).itemsize for spec in specs)


def _ends(sizes: Sequence[int]) -> tuple[int, int]:
    """Return the smallest and the largest; a range may have millions, and is not walked through."""
    return (sizes[0], sizes[-1]) if isinstance(sizes, range) else (min(sizes), max(sizes))


def _check(key: str, array: NDArray[Any], spec: ArraySpec) -> None:
    if array.dtype.name != spec.dtype:
        raise WireError("AGFL-WIRE-019", f"{key}: must be {spec.dtype}, got {array.dtype.name}")
    if array.size not in spec.sizes:
        few = sorted(set(_ends(spec.sizes)))
        rule = (" to " if isinstance(spec.sizes, range) else " or ").join(map(str, few))
        raise WireError("AGFL-WIRE-020", f"{key}: must have {rule} elements as configured, got {array.size}")
    if spec.dtype == "float32":
        if not np.isfinite(square_sum(array)):
            raise WireError("AGFL-WIRE-021", f"{key}: must be finite, got NaN or infinity")
    elif array.size and not (spec.low <= array.min() and array.max() <= spec.high):
        raise WireError(
            "AGFL-WIRE-022", f"{key}: must be in [{spec.low}, {spec.high}], got {array.min()} to {array.max()}"
        )
