"""The integer sum decodes to the float64 sum within a stated bound, never overflows, and says how much it lost.

Legend: d parameters, n clients, L levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agfl_models.errors import ImplausibleSum, WireError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.header import Header
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.method import Round
from agfl_protocol.secagg.lanes import Lanes, field_bits
from agfl_protocol.transforms.basis import BOX, Basis
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import (
    RELATIVE_ERROR,
    TARGET_RELATIVE_ERROR,
    Quantization,
    QuantizationPlan,
    metric_names,
    plan_round,
)
from agfl_protocol.transforms.rotation import rotation_seed
from agfl_protocol.update import Layout, Total, Update, Vector

FIELDS = (1, 2, 3, 4)
COHORTS = (2, 3, 24, 1000)
SUMS = {"train/nll": 0.5, "train/tokens": 2.0}


def quantizer(
    size: int, fields: int, n: int, clip_l2: float = 1.0, ring: NDArray[np.uint8] | None = None
) -> Quantization:
    basis = Basis(size, rotation_seed(0, 1), ring)
    return Quantization(QuantizationPlan(fields, n), clip_l2, basis, Header(metric_names(), n))


def codec_of(config: RunConfig, size: int, n: int) -> UpdateCodec:
    plan, layout = QuantizationPlan(1, n), Layout(("t",), ((size,),))
    return UpdateCodec.for_round(
        Round(config.client_plan, arrays={"clipping": {"step": np.array([46])}}),
        config.build_task(),
        layout,
        plan,
        round_number=1,
        train=True,
        evaluate=False,
    )


def random_deltas(rng: np.random.Generator, n: int, size: int, clip_l2: float) -> NDArray[np.float32]:
    """Deltas (n, size) of which each has a norm of `clip_l2`, or a little less."""
    deltas = rng.standard_normal((n, size))
    scaled: NDArray[np.float32] = (0.999 * clip_l2 * deltas / np.linalg.norm(deltas, axis=1, keepdims=True)).astype(
        np.float32
    )
    return scaled


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


@given(
    st.sampled_from(FIELDS),
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(-6, 3),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_decoded_sum_is_within_one_step_a_client_and_element(
    fields: int, n: int, size: int, exponent: float, rings: int, seed: int
) -> None:
    clip_l2, rng = 10.0**exponent, np.random.default_rng(seed)
    ring = np.arange(size, dtype=np.uint8) % min(rings, size)
    quantization = quantizer(size, fields, n, clip_l2, ring if rings > 1 else None)
    deltas = random_deltas(rng, n, size, clip_l2)
    total = quantization.decode(summed(quantization, deltas, seed))
    # What was clipped of an element is at most what the norm leaves above the box; none is where that is the norm.
    boxes, sizes = quantization.boxes, np.array(quantization.basis.sizes)
    steps = 2 * boxes / quantization.plan.levels
    clipped = total.metrics["quantization/clipping"] * float(np.sqrt(np.dot(sizes, np.square(boxes))))
    most = n * float(np.sqrt(np.dot(sizes, np.square(steps)))) + clipped + n * clip_l2 * 2.0**-20
    assert (total.count, total.weight) == (n, n)
    assert np.linalg.norm(total.delta - exact_sum(deltas)) <= most


@pytest.mark.parametrize("fields", FIELDS)
def test_rounding_is_unbiased(fields: int) -> None:
    trials, n = 500, 24
    delta = np.array([0.0, 0.11, -0.37, 0.63, -0.599], np.float32)
    quantization = quantizer(5, fields, n)
    rng = np.random.default_rng(fields)
    decoded = [quantization.decode(quantization.encode(Update(delta, 1.0, {}), rng)).delta for _ in range(trials)]
    step = 2 / quantization.plan.levels
    # The standard deviation of one rounding is at most half a step, and a rotation adds none: six sigma.
    bound = 6 * 0.5 * step / np.sqrt(trials) + step / 256 * quantization.basis.sizes[0] ** 0.5 + 1e-6
    assert (np.abs(np.mean(decoded, axis=0, dtype=np.float64) - delta) < bound).all()


@given(st.sampled_from(FIELDS), st.permutations(range(6)), st.integers(0, 2**32))
def test_sum_does_not_depend_on_the_order(fields: int, order: list[int], seed: int) -> None:
    quantization = quantizer(8, fields, 6, 10.0)
    deltas = np.random.default_rng(seed).standard_normal((6, 8), np.float32)
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
@pytest.mark.parametrize("factor", [-1.0, 1.0, 1e6, -1e30])
def test_whole_cohort_past_every_box_does_not_overflow(fields: int, n: int, factor: float) -> None:
    """Without a client's own clip, too: each element is what its box lets through, and the norm a small multiple."""
    quantization = quantizer(3000, fields, n, 2.0)
    assert n * quantization.plan.levels < 2 ** field_bits(fields)
    delta = random_deltas(np.random.default_rng(n), 1, 3000, 2.0)[0] * np.float32(factor)
    alike = max(1, n // 100)  # of a thousand clients ten round in the same way
    total = quantization.decode(summed(quantization, np.tile(delta, (n // alike, 1))) * np.uint64(alike))
    norm, inner = float(np.linalg.norm(total.delta)) / n, float(np.dot(total.delta, delta))
    assert inner > 0
    rounding = (n / alike) ** -0.5 * 3000**0.5 * 4 / quantization.plan.levels
    assert norm <= (1.0 + 1e-4 if abs(factor) == 1 else BOX) * 2.0 + rounding


@pytest.mark.parametrize("size", [17, 1000, 50_000])
@pytest.mark.parametrize("level", [0, 1])
def test_filled_fields_are_four_honest_norms(size: int, level: int) -> None:
    """Today's bound of what a liar adds within its range, whatever the tensors are: it was 14 to 89 times."""
    quantization = quantizer(size, 2, 5, 3.0)
    fields = np.full(quantization.num_lanes - quantization.header.size, level * quantization.plan.levels, np.uint64)
    header = quantization.header.encode(1.0, dict.fromkeys(quantization.header.metrics, 0.0))
    total = quantization.decode(np.concatenate([header, fields | fields << np.uint64(32)]))
    assert 0.5 * BOX * 3.0 < np.linalg.norm(total.delta) <= BOX * 3.0 * (1 + 1e-5)


@pytest.mark.parametrize("n", [3, 24, 600])
def test_error_of_realistic_rounds_is_measured_and_at_most_one_percent(n: int) -> None:
    """Tensors of very different size, elements with heavy tails: in the rotated basis they are all alike."""
    rng, sizes = np.random.default_rng(n), (3000, 17, 500, 2000)
    norm: float | None = None
    for number in range(4):
        deltas = heavy_tailed(rng, n, sizes, [1e-3, 1e-1, 1e-6, 3e-2])
        clip_l2 = float(np.median(np.linalg.norm(deltas, axis=1)))
        deltas *= np.minimum(1, clip_l2 / np.linalg.norm(deltas, axis=1, keepdims=True)).astype(np.float32)
        plan = plan_round(clip_l2, norm, 1, n)
        basis = Basis(sum(sizes), rotation_seed(0, number))
        quantization = Quantization(plan, clip_l2, basis, Header(metric_names(), n))
        total = quantization.decode(summed(quantization, deltas, number))
        quantization.check_sum(total)
        measured, true = total.metrics[RELATIVE_ERROR], relative_error(total, deltas)
        assert true <= TARGET_RELATIVE_ERROR == 0.01, number
        assert 0.5 * true - 1e-6 <= measured <= (1 + n**0.5) * true, (
            number
        )  # what clipping cut off is added up at worst
        assert number == 0 or plan.fields_per_lane >= 3  # few bits, once the size of updates is known
        norm = float(np.linalg.norm(total.delta)) / n


@pytest.mark.parametrize("weights", [[1.0, *[0.02] * 23], [1 / (i + 1) for i in range(24)]])
def test_error_with_one_heavy_owner_is_at_most_one_percent(weights: list[float]) -> None:
    rng, n, norm = np.random.default_rng(0), len(weights), 1.0
    for number in range(3):
        deltas = random_deltas(rng, n, 5000, 1.0) * np.array(weights, np.float32)[:, None]
        plan = plan_round(1.0, norm, 1, n)
        quantization = Quantization(plan, 1.0, Basis(5000, bytes(48)), Header(metric_names(), n))
        total = quantization.decode(summed(quantization, deltas))
        norm = float(np.linalg.norm(total.delta)) / n
        assert number == 0 or relative_error(total, deltas) <= TARGET_RELATIVE_ERROR, number


def test_ring_that_stood_still_decodes_to_zero() -> None:
    ring = np.repeat(np.arange(2, dtype=np.uint8), 20)
    for n, fields in itertools.product((2, 3, 24), FIELDS):
        quantization = quantizer(40, fields, n, 5.0, ring)
        deltas = np.zeros((n, 40), np.float32)
        deltas[:, :20] = np.random.default_rng(n).uniform(-1, 1, (n, 20))
        decoded = quantization.decode(summed(quantization, deltas)).delta
        assert decoded[:20].all(), (n, fields)
        assert not decoded[20:].any(), (n, fields)


def test_honest_sums_are_plausible_whatever_the_updates_are() -> None:
    """A refused sum is a lost round, so no honest one may be: dense, spikes, alike, nothing but zeros."""
    for number, size in itertools.product(range(5), (1, 300, 20_000)):
        rng = np.random.default_rng(number)
        for n in (1, 2, 12):
            dense = random_deltas(rng, n, size, 1.0)
            spikes = np.zeros_like(dense)
            spikes[:, rng.integers(0, size, 1 + number % 3)] = 0.5
            for deltas in (
                dense,
                spikes,
                0.01 * spikes + 0.1 * dense,
                np.zeros_like(dense),
                np.tile(dense[:1], (n, 1)),
            ):
                basis = Basis(size, rotation_seed(0, number))
                for fields in (2, 4):
                    quantization = Quantization(QuantizationPlan(fields, n), 1.0, basis, Header(metric_names(), n))
                    quantization.check_sum(quantization.decode(summed(quantization, deltas, number)))


def test_a_field_that_no_honest_clients_add_up_to_is_not_used() -> None:
    quantization = quantizer(50, 3, 4)
    total = summed(quantization, np.zeros((4, 50), np.float32))
    total[quantization.header.size] += np.uint64(4 * quantization.plan.levels // 2 + 1)
    with pytest.raises(ImplausibleSum, match=r"^fields: the sum must be at most \d+, got \d+.*AGFL-ROUND-009"):
        quantization.decode(total)


def test_a_mean_above_the_bound_is_not_used() -> None:
    """Who leaves its own range, but not that of the sum, moves every element as far as all others together."""
    rng, n = np.random.default_rng(0), 5
    quantization = quantizer(5000, 2, n)
    alone = Quantization(QuantizationPlan(2, 1), float(n), quantization.basis, quantization.header)
    assert abs(alone.plan.levels - n * quantization.plan.levels) <= n  # it fills what the sum has room for
    for norm, is_used in ((1.0, True), (1.1 * n + 2, False)):
        total = summed(quantization, random_deltas(rng, n - 1, 5000, 1.0))
        lanes = alone.encode(Update(random_deltas(rng, 1, 5000, norm)[0], 1.0, {}), rng)
        lanes[alone.header.size :] -= np.uint64((1 + 2**32) * (alone.plan.levels - quantization.plan.levels) // 2)
        decoded = quantization.decode(total + lanes)
        if is_used:
            quantization.check_sum(decoded)
        else:
            with pytest.raises(ImplausibleSum, match=r"^update: the norm of the sum must be at most 5, got 7"):
                quantization.check_sum(decoded)


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
    update = clipping.encode(Update(delta, 1.0, {}), {}, np.random.default_rng(0))
    before = np.linalg.norm(delta.astype(np.float64))
    after = np.linalg.norm((delta * np.float32(update.gain)).astype(np.float64))
    clipped = before > clip_l2
    above = {f"clip/above_{k}": float(before > clip_l2 / 2 ** (k / 2)) for k in (1, 2)}
    assert update.metrics == {"clip/clipped": float(clipped), **above}
    assert after <= clip_l2
    if clipped:
        np.testing.assert_allclose(update.gain, clip_l2 / before, rtol=3e-5)
    else:
        assert update.gain == 1
    assert update.delta is delta
    total, _ = clipping.decode(Total(update.delta, 4, 1.0, {"clip/clipped": 3.0}), {})
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
    mean, _ = codec.decode_mean(codec.decode_sum(lanes))
    w = effective(weights)
    np.testing.assert_allclose(mean.delta, w @ deltas.astype(np.float64) / w.sum(), atol=2e-5)
    assert mean.count == 5
    assert (mean.metrics["train/nll"], mean.metrics["train/tokens"]) == (2.5, 10.0)


@pytest.mark.parametrize(
    ("lane", "value", "line"),
    [
        (0, 2, r"^count: .*got 2.*AGFL-WIRE-027"),
        (1, 0, r"^weight: must be in \(0, 1\], got 0"),
        (1, 2**20 + 1, r"^weight: must be in \(0, 1\], got 1\.0"),
        (2, 2**62, r"^metric .*: must be below"),
        (-1, 2**64 - 1, r"^lanes: every field must be at most \d+, got \d+.*AGFL-WIRE-049"),
    ],
)
def test_what_one_client_sent_in_the_open_is_checked(
    run_config: Callable[..., RunConfig], lane: int, value: int, line: str
) -> None:
    codec = codec_of(run_config(), 50, 5)
    lanes = codec.encode(Update(np.full(50, 0.1, np.float32), 128.0, SUMS), np.random.default_rng(0))
    codec.check(lanes)
    lanes[lane] = value
    with pytest.raises(WireError, match=line):
        codec.check(lanes)
