"""Quantization: float deltas become fixed-point integers whose sum is exact, whoever adds them in whatever order.

Each element x of tensor k is clipped to [-C_k, C_k] and stochastically rounded to one of L + 1 levels; C_k is public
and learned from past sums, so no client picks its own. L is such that the sum over the largest cohort stays in its
field. Legend: d parameters, K tensors, n clients, L levels, C (K,) scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agfl_models.errors import WireError
from agfl_protocol.header import Header
from agfl_protocol.secagg import lanes as packing
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.rounding import Losses, StochasticRounding
from agfl_protocol.update import Layout, Total, Update

TARGET_RELATIVE_ERROR = 0.01  # of the mean delta, L2
ROUNDING, CLIPPING, RELATIVE_ERROR = (
    "quantization/rounding",
    "quantization/clipping",
    "quantization/relative_error",
)
_ABSMAX4 = "quantization/absmax4/"
MIN_SCALE, MAX_SCALE = 1e-30, 1e30  # their squares are still float64 numbers
_MARGIN = 3.0  # C_k is this times what the clients' largest |x| was, since the next round's may be larger
_MAX_METRIC = 2.0**42  # bound of the sum over the cohort of a metric that has no bound of its own
_MAX_LEVELS = 2**44  # beyond this float64 could not tell the noise of the rounding apart


@dataclass(frozen=True)
class QuantizationPlan:
    """The public parameters of one round's quantizer; part of the broadcast.

    scales: C (K,) float64, one for each parameter tensor.
    """

    fields_per_lane: int
    max_cohort: int
    scales: NDArray[np.float64]

    @property
    def levels(self) -> int:
        """L: `max_cohort` clients at the top level still fit one field. Even, so that zero is a level."""
        top: int = 2 ** packing.field_bits(self.fields_per_lane) - 1
        half = min(top // self.max_cohort, _MAX_LEVELS) // 2
        return 2 * half


@dataclass(frozen=True)
class Scales:
    """What past sums taught the server, from which it plans the next round.

    values: C (K,); norm: L2 norm of a client's share of the last sum, None before the first.
    """

    values: NDArray[np.float64]
    norm: float | None


def initial_scales(layout: Layout, clip_l2: float) -> Scales:
    """Nothing is known of the tensors yet: no element exceeds the clipping bound."""
    return Scales(np.full(len(layout.sizes), clip_l2), None)


def learn_scales(scales: Scales, layout: Layout, total: Total) -> Scales:
    """Return the scales of the next round, learned from a decoded sum before its weighting is undone."""
    fourth = np.array([total.metrics[_ABSMAX4 + str(k)] for k in range(len(layout.sizes))])
    # The 4-norm over clients lies between their largest max |x| and n^(1/4) of it, and it is a sum.
    # A tensor that stood still this round may move again in the next: shrink its scale only step by step.
    values = scales.values * np.maximum(_MARGIN * fourth**0.25, 1 / 16)
    norm = float(np.linalg.norm(total.delta.astype(np.float64))) / total.count
    return Scales(np.clip(values, max(values.max() * 2.0**-20, MIN_SCALE), MAX_SCALE), norm)


def plan_round(scales: Scales, layout: Layout, cohort: int) -> QuantizationPlan:
    """Return the plan for a cohort: the narrowest fields whose predicted relative error is half the target.

    In the first round, with nothing to predict from, fields have 32 bits.
    """
    if scales.norm is None:
        return QuantizationPlan(2, cohort, scales.values)
    for fields in (4, 3, 2):
        plan = QuantizationPlan(fields, cohort, scales.values)
        # Rounding variance is step^2 / 6 for each client and element, and errors of different clients are independent.
        predicted = float(np.sqrt(_square_steps(plan, layout) * cohort / 6))
        if predicted <= TARGET_RELATIVE_ERROR / 2 * scales.norm * cohort:
            return plan
    return QuantizationPlan(1, cohort, scales.values)


def metric_names(layout: Layout) -> tuple[str, ...]:
    """Return the names of the sums that `Quantization.encode` adds to the header."""
    return (ROUNDING, CLIPPING, *(_ABSMAX4 + str(k) for k in range(len(layout.sizes))))


@dataclass(frozen=True)
class Quantization:
    """Client half: float update to integer lanes. Server half: summed lanes to the summed update."""

    plan: QuantizationPlan
    layout: Layout
    header: Header

    @property
    def num_lanes(self) -> int:
        """Length of the vector that is summed: header lanes, then the packed delta."""
        return self.header.size + packing.num_lanes(self.layout.size, self.plan.fields_per_lane)

    def encode(self, update: Update, rng: np.random.Generator) -> Lanes:
        """Return the vector (num_lanes,) that this client adds to the sum.

        What was lost is measured and travels in the header.
        """
        vector = np.zeros(self.num_lanes, np.uint64)
        half = self.plan.levels // 2
        factors = (update.gain * half / self.plan.scales).tolist()
        rounding = StochasticRounding(half, self.plan.fields_per_lane, rng)
        losses = rounding.write(update.delta, self.layout.sizes, factors, vector[self.header.size :])
        header = self.header.encode(update.weight, {**update.metrics, **self._metrics(losses)})
        vector[: self.header.size] = header
        return vector

    def _metrics(self, losses: Losses) -> dict[str, float]:
        """Return the sums that `metric_names` names."""
        plan, bound = self.plan, _MAX_METRIC / self.plan.max_cohort
        fourth = np.minimum((2 * losses.peaks / plan.levels) ** 4, bound)
        metrics = {_ABSMAX4 + str(k): value for k, value in enumerate(fourth.tolist())}
        if self.layout.sizes:
            square_steps = np.square(2 * plan.scales / plan.levels)
            metrics[ROUNDING] = float(np.dot(losses.rounding, square_steps)) / _square_steps(plan, self.layout)
            clipping = float(np.sqrt(np.dot(losses.clipping, square_steps)))
            metrics[CLIPPING] = min(clipping / _range_norm(plan, self.layout), bound)
        return metrics

    def check(self, lanes: Lanes) -> None:
        """Check the lanes (num_lanes,) that one client sent in the open.

        Raises:
            WireError: the header does not hold, or a field is above the highest level.
        """
        self.header.check(lanes[: self.header.size])
        packed, bits = lanes[self.header.size :], packing.field_bits(self.plan.fields_per_lane)
        for j in range(self.plan.fields_per_lane):
            plane = (packed >> np.uint64(j * bits)) & np.uint64(2**bits - 1)
            if plane.size and plane.max() > self.plan.levels:
                raise WireError(f"lanes: every field must be at most {self.plan.levels}, got {plane.max()}")

    def decode(self, total: Lanes) -> Total:
        """Return the summed update; its metric `quantization/relative_error` is measured, not assumed.

        Rounding errors of different clients are independent and unbiased, so their squares add; the norms of what
        clipping cut off add at worst.
        """
        plan = self.plan
        count, weight, metrics = self.header.decode(total[: self.header.size])
        sums = packing.unpack(total[self.header.size :], self.layout.size, plan.fields_per_lane)
        delta = np.empty(self.layout.size, np.float32)
        for place, scale in zip(self.layout.slices, plan.scales.tolist(), strict=True):
            steps = sums[place].astype(np.int64) - count * (plan.levels // 2)
            delta[place] = steps * (2 * scale / plan.levels)
        if self.layout.sizes:
            rounding = np.sqrt(metrics[ROUNDING] * _square_steps(plan, self.layout))
            clipping = metrics[CLIPPING] * _range_norm(plan, self.layout)
            norm = float(np.linalg.norm(delta.astype(np.float64)))
            metrics[RELATIVE_ERROR] = float(rounding + clipping) / norm if norm > 0 else 0.0
        return Total(delta, count, weight, metrics)


def _square_steps(plan: QuantizationPlan, layout: Layout) -> float:
    """Sum over all elements of the squared distance of two levels: the unit of the rounding error."""
    return float(np.dot(layout.sizes, np.square(2 * plan.scales / plan.levels)))


def _range_norm(plan: QuantizationPlan, layout: Layout) -> float:
    """L2 norm of a delta whose every element is C_k: the unit of the clipping error."""
    return float(np.sqrt(np.dot(layout.sizes, np.square(plan.scales))))
