"""The integer sum decodes to the float64 sum within a stated bound, never overflows, and says how much it lost.

Legend: d parameters, K tensors, n clients, L levels, C (K,) scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_models.errors import WireError
from agfl_protocol.header import Header
from agfl_protocol.run_config import RunConfig
from agfl_protocol.secagg.lanes import Lanes, field_bits, unpack
from agfl_protocol.transforms.clipping import Clipping
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import (
    RELATIVE_ERROR,
    TARGET_RELATIVE_ERROR,
    Quantization,
    QuantizationPlan,
    Scales,
    initial_scales,
    learn_scales,
    metric_names,
    plan_round,
)
from agfl_protocol.update import Layout, Total, Update, Vector

FIELDS = (1, 2, 3, 4)
COHORTS = (2, 3, 24, 1000)
SUMS = {"train/nll": 0.5, "train/tokens": 2.0}


def layout_of(*sizes: int) -> Layout:
    return Layout(tuple(f"t{k}" for k in range(len(sizes))), tuple((size,) for size in sizes))


def quantizer(layout: Layout, plan: QuantizationPlan) -> Quantization:
    return Quantization(plan, layout, Header(metric_names(layout), plan.max_cohort))


def codec_of(config: RunConfig, size: int, n: int) -> UpdateCodec:
    plan = QuantizationPlan(1, n, np.array([100.0]))
    return UpdateCodec.for_round(config, config.build_task(), layout_of(size), plan, train=True, evaluate=False)


def summed(quantization: Quantization, deltas: NDArray[np.float32], seed: int = 0) -> Lanes:
    rng = np.random.default_rng(seed)
    total = np.zeros(quantization.num_lanes, np.uint64)
    for delta in deltas:
        total += quantization.encode(Update(delta, 1.0, {}), rng)
    return total


def exact_sum(deltas: NDArray[np.float32]) -> NDArray[np.float64]:
    exact: NDArray[np.float64] = deltas.astype(np.float64).sum(axis=0)
    return exact


def relative_error(total: Total, deltas: NDArray[np.float32]) -> float:
    exact = exact_sum(deltas)
    return float(np.linalg.norm(total.delta - exact) / np.linalg.norm(exact))


def heavy_tailed(rng: np.random.Generator, n: int, sizes: Sequence[int], sds: Sequence[float]) -> NDArray[np.float32]:
    """Deltas (n, d): Student's t with 5 degrees of freedom, half common to all clients, half each client's own."""
    parts = [
        sd * (rng.standard_t(5, size) + rng.standard_t(5, (n, size))) / 2 for size, sd in zip(sizes, sds, strict=True)
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass
class Rounds:
    """The server's side of many rounds: plan, sum, decode, learn."""

    layout: Layout
    n: int
    scales: Scales

    @staticmethod
    def over(layout: Layout, n: int) -> Rounds:
        return Rounds(layout, n, initial_scales(layout, 100.0))

    def run(self, deltas: NDArray[np.float32], seed: int) -> tuple[QuantizationPlan, Total]:
        plan = plan_round(self.scales, self.layout, self.n)
        quantization = quantizer(self.layout, plan)
        total = quantization.decode(summed(quantization, deltas, seed))
        self.scales = learn_scales(self.scales, self.layout, total)
        return plan, total


@given(
    st.sampled_from(FIELDS),
    st.integers(1, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.floats(-6, 3), min_size=4, max_size=4),
    st.integers(0, 2**32),
)
def test_decoded_sum_is_within_one_step_a_client(
    fields: int, n: int, sizes: list[int], exponents: list[float], seed: int
) -> None:
    layout = layout_of(*sizes)
    scales = 10.0 ** np.array(exponents[: len(sizes)])
    quantization = quantizer(layout, QuantizationPlan(fields, n, scales))
    bound = np.repeat(scales, sizes)
    deltas = np.random.default_rng(seed).uniform(-bound, bound, (n, layout.size)).astype(np.float32)
    total = quantization.decode(summed(quantization, deltas, seed))
    step = 2 * bound / quantization.plan.levels
    exact = exact_sum(np.clip(deltas, -bound, bound).astype(np.float32))
    slack = n * bound * 2.0**-22  # the result is float32, and so are scales at the edge of what was drawn
    assert (total.count, total.weight) == (n, n)
    assert (np.abs(total.delta - exact) <= n * step + slack).all()


@pytest.mark.parametrize("fields", FIELDS)
def test_rounding_is_unbiased(fields: int) -> None:
    layout, trials = layout_of(5), 4000
    plan = QuantizationPlan(fields, 24, np.array([1.0]))
    step = 2 / plan.levels
    delta = np.array([0.0, 0.11, -0.37, 0.93, -0.999], np.float32)
    quantization = quantizer(layout, plan)
    rng = np.random.default_rng(fields)
    lanes = [quantization.encode(Update(delta, 1.0, {}), rng) for _ in range(trials)]
    levels = np.array([unpack(lane[quantization.header.size :], 5, fields) for lane in lanes], np.float64)
    mean = (levels.mean(axis=0) / plan.levels * 2 - 1 - delta.astype(np.float64)) / step
    # The standard deviation of one rounding is at most half a step: six sigma.
    assert (np.abs(mean) < 6 * 0.5 / np.sqrt(trials)).all(), mean


@given(st.sampled_from(FIELDS), st.permutations(range(6)), st.integers(0, 2**32))
def test_sum_does_not_depend_on_the_order(fields: int, order: list[int], seed: int) -> None:
    layout = layout_of(4, 1, 3)
    quantization = quantizer(layout, QuantizationPlan(fields, 6, np.array([1.0, 0.1, 10.0])))
    deltas = np.random.default_rng(seed).standard_normal((6, layout.size), np.float32)
    vectors = [quantization.encode(Update(x, 1.0, {}), np.random.default_rng(i)) for i, x in enumerate(deltas)]
    there, back = np.zeros(quantization.num_lanes, np.uint64), np.zeros(quantization.num_lanes, np.uint64)
    for vector in vectors:
        there += vector
    for i in order:
        back += vectors[i]
    assert np.array_equal(there, back)
    assert quantization.decode(there).delta.tobytes() == quantization.decode(back).delta.tobytes()


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("n", COHORTS)
@pytest.mark.parametrize("sign", [-1.0, 1.0, 100.0, -100.0])
def test_whole_cohort_at_the_bound_does_not_overflow(fields: int, n: int, sign: float) -> None:
    layout = layout_of(3, 2)
    plan = QuantizationPlan(fields, n, np.array([0.25, 8.0]))
    assert n * plan.levels < 2 ** field_bits(fields)
    quantization = quantizer(layout, plan)
    delta = (np.repeat(plan.scales, layout.sizes) * sign).astype(np.float32)
    total = quantization.decode(summed(quantization, np.tile(delta, (n, 1))))
    exact = np.sign(sign) * np.repeat(plan.scales, layout.sizes) * n
    np.testing.assert_allclose(total.delta, exact, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 24])
def test_error_of_realistic_rounds_is_measured_and_at_most_one_percent(n: int) -> None:
    rng, layout = np.random.default_rng(n), layout_of(3000, 17, 500, 2000)
    rounds = Rounds.over(layout, n)
    for number in range(10):
        sds = np.array([1e-3, 1e-1, 1e-6, 3e-2]) / (1 + 0.1 * number)
        deltas = heavy_tailed(rng, n, layout.sizes, sds.tolist())
        plan, total = rounds.run(deltas, number)
        measured, true = total.metrics[RELATIVE_ERROR], relative_error(total, deltas)
        assert true <= TARGET_RELATIVE_ERROR == 0.01, number
        assert 0.5 * true <= measured <= 2 * true, number
        assert number < 2 or plan.fields_per_lane >= 3  # few bits, once the scales are known


@pytest.mark.parametrize("n", [3, 24])
@pytest.mark.parametrize("event", ["grows tenfold", "shrinks tenfold", "frozen tensor wakes"])
def test_error_of_a_sudden_change_is_measured_and_gone_in_the_next_round(n: int, event: str) -> None:
    """The round of the change itself may break the target, up to half the update; it says so in its own metric."""
    rng, layout = np.random.default_rng(n), layout_of(3000, 50, 2000)
    before = {"grows tenfold": [1e-3, 1e-2, 3e-2], "shrinks tenfold": [1e-2, 1e-1, 0.3]}
    sds = before.get(event, [1e-3, 0.0, 3e-2])
    rounds, after = Rounds.over(layout, n), {"grows tenfold": 10.0, "shrinks tenfold": 0.1}.get(event, 1.0)
    errors = []
    for number in range(8):
        if number == 5:
            sds = [sd * after or 1e-2 for sd in sds]
        deltas = heavy_tailed(rng, n, layout.sizes, sds)
        _, total = rounds.run(deltas, number)
        errors.append((relative_error(total, deltas), total.metrics[RELATIVE_ERROR]))
    for true, measured in errors:  # what clipping cut off is added up at worst: too much by sqrt(n) at most
        assert 0.5 * true <= measured <= (1 + n**0.5) * true
    assert max(true for true, _ in errors[:5] + errors[6:]) <= TARGET_RELATIVE_ERROR
    assert errors[5][0] < 0.5


@pytest.mark.parametrize("weights", [[1.0, *[0.02] * 23], [1 / (i + 1) for i in range(24)]])
def test_error_with_one_heavy_owner_is_at_most_one_percent(weights: list[float]) -> None:
    rng, layout = np.random.default_rng(0), layout_of(3000, 2000)
    rounds = Rounds.over(layout, len(weights))
    for number in range(8):
        deltas = heavy_tailed(rng, len(weights), layout.sizes, [1e-3, 3e-2]) * np.array(weights, np.float32)[:, None]
        _, total = rounds.run(deltas, number)
        assert relative_error(total, deltas) <= TARGET_RELATIVE_ERROR, number


def test_tensor_that_stood_still_decodes_to_zero() -> None:
    layout = layout_of(20, 20)
    for n, fields in itertools.product((2, 3, 24), FIELDS):
        quantization = quantizer(layout, QuantizationPlan(fields, n, np.array([1.0, 1.0])))
        deltas = np.zeros((n, 40), np.float32)
        deltas[:, :20] = np.random.default_rng(n).uniform(-1, 1, (n, 20))
        assert not quantization.decode(summed(quantization, deltas)).delta[20:].any(), (n, fields)


def test_scales_stay_usable_while_nothing_moves() -> None:
    rounds = Rounds.over(layout_of(4, 2), 3)
    for number in range(300):
        plan, total = rounds.run(np.zeros((3, 6), np.float32), number)
        assert (plan.scales > 0).all()
        assert np.isfinite(list(total.metrics.values())).all()


@pytest.mark.parametrize(
    ("delta", "problem"),
    [
        (np.zeros(3, np.float64), r"delta: must be float32 of shape \(3,\), got float64 \(3,\)"),
        (np.zeros(2, np.float32), r"delta: must be float32 of shape \(3,\), got float32 \(2,\)"),
        (np.zeros((3, 1), np.float32), r"delta: must be float32 of shape \(3,\), got float32 \(3, 1\)"),
    ],
)
def test_bad_delta_is_refused_by_name(run_config: Callable[..., RunConfig], delta: Vector, problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        codec_of(run_config(), 3, 2).encode(Update(delta, 1.0, SUMS), np.random.default_rng(0))


@given(st.floats(-30, 30), st.floats(-3, 3), st.integers(1, 50), st.integers(0, 2**32))
def test_clipping_scales_to_the_bound_and_reports_it(magnitude: float, clip: float, size: int, seed: int) -> None:
    clipping, clip_l2 = Clipping(10.0**clip), 10.0**clip
    delta = (np.random.default_rng(seed).standard_normal(size) * 10.0**magnitude).astype(np.float32)
    update = clipping.encode(Update(delta, 1.0, {}))
    before = np.linalg.norm(delta.astype(np.float64))
    after = np.linalg.norm((delta * np.float32(update.gain)).astype(np.float64))
    clipped = before > clip_l2
    assert update.metrics == {"clip/clipped": float(clipped)}
    assert after <= clip_l2
    if clipped:
        np.testing.assert_allclose(update.gain, clip_l2 / before, rtol=3e-5)
    else:
        assert update.gain == 1
    assert update.delta is delta
    total = clipping.decode(Total(update.delta, 4, 1.0, {"clip/clipped": 3.0}))
    assert total.metrics == {"clip/fraction": 0.75}


@pytest.mark.parametrize(
    ("overrides", "effective"),
    [
        ((), lambda w: np.minimum(w, 128.0)),  # local_steps * batch_size * sequence_length
        (("aggregation.max_weight=50",), lambda w: np.minimum(w, 50.0)),
        (("aggregation.weighting=uniform",), np.ones_like),
    ],
)
def test_mean_is_the_weighted_mean(
    run_config: Callable[..., RunConfig],
    overrides: tuple[str, ...],
    effective: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    rng, weights = np.random.default_rng(1), np.array([128.0, 1.0, 77.0, 31.0, 1000.0])
    deltas = rng.standard_normal((5, 40), np.float32)
    codec = codec_of(run_config(*overrides), 40, 5)
    lanes = np.zeros(codec.num_lanes, np.uint64)
    for delta, weight in zip(deltas, weights, strict=True):
        lanes += codec.encode(Update(delta, float(weight), SUMS), rng)
    mean = codec.decode_mean(codec.decode_sum(lanes))
    w = effective(weights)
    np.testing.assert_allclose(mean.delta, w @ deltas.astype(np.float64) / w.sum(), atol=2e-5)
    assert mean.count == 5
    assert (mean.metrics["train/nll"], mean.metrics["train/tokens"]) == (2.5, 10.0)
