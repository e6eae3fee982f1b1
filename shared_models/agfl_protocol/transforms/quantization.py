"""Quantization: float deltas become fixed-point integers whose sum is exact, whoever adds them in whatever order.

Each element x, in a rotated basis, is clipped to [-C_k, C_k] and stochastically rounded to one of L + 1 levels. C_k
follows from the bound of the norm and the size of the ring, so nobody picks it or learns it from anybody's text. L is
such that the sum over the largest cohort stays in its field. Legend: d parameters, D elements in the basis, R rings
(1 where the model is not elastic), n clients, L levels, C (R,) boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import ImplausibleSum, WireError
from agfl_protocol.messages.array_bytes import new_vector
from agfl_protocol.messages.header import Header
from agfl_protocol.secagg import lanes as packing
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.basis import BOX, Basis
from agfl_protocol.transforms.rounding import Losses, StochasticRounding
from agfl_protocol.update import Total, Update, Vector, square_sum

TARGET_RELATIVE_ERROR = 0.01  # of the mean delta, L2
ROUNDING, CLIPPING, RELATIVE_ERROR, FLATNESS = (
    "quantization/rounding",
    "quantization/clipping",
    "quantization/relative_error",
    "quantization/flatness",
)
_MAX_METRIC = 2.0**42  # bound of the sum over the cohort of a metric that has no bound of its own
_MAX_LEVELS = 2**44  # beyond this float64 could not tell the noise of the rounding apart
_CHUNK = 2**16  # lanes
_NOISE = 5.0  # root mean squares that rounding adds to a norm at most


@dataclass(frozen=True)
class QuantizationPlan:
    """The public parameters of one round's quantizer; part of the broadcast."""

    fields_per_lane: int
    max_cohort: int

    @property
    def levels(self) -> int:
        """L: `max_cohort` clients at the top level still fit one field. Even, so that zero is a level."""
        top: int = 2 ** packing.field_bits(self.fields_per_lane) - 1
        half = min(top // self.max_cohort, _MAX_LEVELS) // 2
        return 2 * half


@dataclass(frozen=True)
class Rotated:
    """An update in the basis. delta: (D,); the rest as in `Update`."""

    delta: Vector
    weight: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Levels:
    """What the fields of a sum say. rotated: summed levels (D,), of which 0 is that of zero; the rest as in `Total`."""

    rotated: Vector
    count: int
    weight: float
    metrics: Mapping[str, float]


def plan_round(clip_l2: float, norm: float | None, num_rings: int, cohort: int) -> QuantizationPlan:
    """Return the plan for a cohort: the narrowest fields whose predicted relative error is half the target.

    norm: L2 norm of a client's share of the last sum; None before the first, when fields have 32 bits.
    """
    if norm is None:
        return QuantizationPlan(2, cohort)
    for fields in (4, 3, 2):
        plan = QuantizationPlan(fields, cohort)
        # Rounding variance is step^2 / 6 for each client and element, and errors of different clients are independent.
        predicted = 2 * BOX * clip_l2 / plan.levels * (num_rings * cohort / 6) ** 0.5 if plan.levels else float("inf")
        if predicted <= TARGET_RELATIVE_ERROR / 2 * norm * cohort:
            return plan
    return QuantizationPlan(1, cohort)


def metric_names() -> tuple[str, ...]:
    """Return the names of the sums that `Quantization.encode` adds to the header."""
    return ROUNDING, CLIPPING


def most_of_metrics(max_cohort: int) -> dict[str, float]:
    """Return what one client's are at most: no element is rounded by more than a level."""
    return {ROUNDING: 1.01, CLIPPING: _MAX_METRIC / max_cohort}


@dataclass(frozen=True)
class Quantization:
    """Client half: float update to integer lanes. Server half: summed lanes to the summed update."""

    plan: QuantizationPlan
    clip_l2: float
    basis: Basis
    header: Header

    @property
    def num_lanes(self) -> int:
        """Length of the vector that is summed: header lanes, then the packed delta."""
        return self.header.size + packing.num_lanes(sum(self.basis.sizes), self.plan.fields_per_lane)

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """C, (R,)."""
        return np.array(self.basis.boxes(self.clip_l2), np.float64)

    def encode(self, update: Update, rng: np.random.Generator) -> Lanes:
        """Return the vector (num_lanes,) that this client adds to the sum."""
        return self.write(self.rotate(update), rng)

    def rotate(self, update: Update) -> Rotated:
        """Return an update in the basis; whoever holds its delta can then let go of it."""
        return Rotated(self.basis.forward(update.delta, update.gain), update.weight, update.metrics)

    def write(self, update: Rotated, rng: np.random.Generator) -> Lanes:
        """Return the vector (num_lanes,) of an update; what was lost is measured and travels in the header."""
        vector: Lanes = new_vector(np.uint64, self.num_lanes)
        half = self.plan.levels // 2
        factors = (half / self.boxes).tolist()
        rounding = StochasticRounding(half, self.plan.fields_per_lane, rng)
        losses = rounding.write(update.delta, self.basis.sizes, factors, vector[self.header.size :])
        header = self.header.encode(update.weight, {**update.metrics, **self._metrics(losses)})
        vector[: self.header.size] = header
        return vector

    def _metrics(self, losses: Losses) -> dict[str, float]:
        """Return the sums that `metric_names` names, none where there is no delta."""
        if not self.basis.sizes:
            return {}
        bound = _MAX_METRIC / self.plan.max_cohort
        square_steps = np.square(self._steps)
        clipping = float(np.sqrt(np.dot(losses.clipping, square_steps)))
        return {
            ROUNDING: float(np.dot(losses.rounding, square_steps)) / self._square_steps,
            CLIPPING: min(clipping / self._range_norm, bound),
        }

    def check(self, lanes: Lanes) -> None:
        """Check the lanes (num_lanes,) that one client sent in the open.

        Raises:
            WireError: the header does not hold, or a field is above the highest level.
        """
        self.header.check(lanes[: self.header.size])
        packed, bits = lanes[self.header.size :], packing.field_bits(self.plan.fields_per_lane)
        for j in range(self.plan.fields_per_lane):
            planes = (packing.field(packed[i : i + _CHUNK], j, bits) for i in range(0, packed.size, _CHUNK))
            largest = max((int(plane.max()) for plane in planes), default=0)
            if largest > self.plan.levels:
                raise WireError(
                    "AGFL-WIRE-049", f"lanes: every field must be at most {self.plan.levels}, got {largest}"
                )

    def decode(self, total: Lanes) -> Total:
        """Return the summed update; raises as `read`."""
        return self.decode_levels(self.read(total))

    def read(self, total: Lanes) -> Levels:
        """Return what the fields of a sum say; whoever holds the lanes can then let go of them.

        Raises:
            ImplausibleSum: no clients whose fields are in range have this sum.
        """
        plan = self.plan
        count, weight, metrics = self.header.decode(total[: self.header.size])
        rotated, largest = self._levels(total[self.header.size :], count * (plan.levels // 2))
        if largest > count * plan.levels:
            raise ImplausibleSum(
                "AGFL-ROUND-009", f"fields: the sum must be at most {count * plan.levels}, got {largest}"
            )
        return Levels(rotated, count, weight, metrics)

    def decode_levels(self, read: Levels) -> Total:
        """Return the summed update; its metric `quantization/relative_error` is measured, not assumed.

        Rounding errors of different clients are independent and unbiased, so their squares add; the norms of what
        clipping cut off add at worst. The levels are overwritten.
        """
        rotated, count, weight, metrics = read.rotated, read.count, read.weight, dict(read.metrics)
        for part, step in zip(self.basis.split(rotated), self._steps.tolist(), strict=True):
            part *= np.float32(step)
        moments = self.basis.fourth_moments(rotated)
        delta = self.basis.inverse(rotated)
        if self.basis.sizes:
            rounding = np.sqrt(metrics[ROUNDING] * self._square_steps)
            clipping = metrics[CLIPPING] * self._range_norm
            norm = square_sum(delta) ** 0.5
            metrics[RELATIVE_ERROR] = float(rounding + clipping) / norm if norm > 0 else 0.0
            metrics[FLATNESS] = self.basis.flatness(moments, delta)
        return Total(delta, count, weight, metrics)

    def _levels(self, lanes: Lanes, zero: int) -> tuple[Vector, int]:
        """Return the levels (D,) of summed fields, of which `zero` is that of 0, and the largest field."""
        levels, largest = np.empty(sum(self.basis.sizes), np.float32), 0
        for start, sums in packing.unpacked(lanes, levels.size, self.plan.fields_per_lane):
            largest = max(largest, int(sums.max()))
            sums -= np.uint64(zero)
            levels[start : start + sums.size] = sums.view(np.int64)
        return levels, largest

    def check_sum(self, total: Total) -> None:
        """Check what `decode` returned for the sum over a cohort.

        Raises:
            ImplausibleSum: no clients that clip, weigh at most 1 and do not look at the rotation have this sum.
        """
        if not self.basis.sizes:
            return
        norm, noise = square_sum(total.delta) ** 0.5, (total.count * self._square_steps) ** 0.5 / 2
        most = self.clip_l2 * total.weight + _NOISE * noise
        if norm > most:
            raise ImplausibleSum(
                "AGFL-ROUND-010", f"update: the norm of the sum must be at most {most:g}, got {norm:g}"
            )
        got = f"{total.metrics[FLATNESS]:.1f} times what chance explains"
        if total.metrics[FLATNESS] > 1:
            raise ImplausibleSum(
                "AGFL-ROUND-011", f"fields: their sum must be as good as normally distributed, is flatter: {got}"
            )

    @cached_property
    def _steps(self) -> NDArray[np.float64]:
        """Distance of two levels in each ring, (R,)."""
        return 2 * self.boxes / self.plan.levels

    @cached_property
    def _square_steps(self) -> float:
        """Sum over all elements of the squared distance of two levels: the unit of the rounding error."""
        return float(np.dot(self.basis.sizes, np.square(self._steps)))

    @cached_property
    def _range_norm(self) -> float:
        """L2 norm of a vector whose every element is C_k: the unit of the clipping error."""
        return float(np.sqrt(np.dot(self.basis.sizes, np.square(self.boxes))))
