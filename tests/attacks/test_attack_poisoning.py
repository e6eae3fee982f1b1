"""One owner of a cohort sends what wrecks the model: it is bounded, not used, or undone, whatever the others send.

The server sees no vector, only their sum. The liars are those of simulations/benchmarks/hostile/poisoning.py.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agfl_models.errors import ImplausibleSum
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods.method import NO_STATES, Round
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_protocol.update import Layout, Total, Update
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.rollback import LAST_RISE

BENCHMARK = Path(__file__).parents[2] / "simulations/benchmarks/hostile/poisoning.py"
SIZE, CLIP_STEP, CLIP = 80_000, 42, 2.0
SUMS = {"train/nll": 5.0, "train/tokens": 2.0}
Config = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("poisoning", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["poisoning"] = module  # where its dataclasses look for their own module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lying(benchmark: ModuleType) -> Iterator[ModuleType]:
    """Let nodes that are told to lie do so."""
    with benchmark.liars():
        yield benchmark


def updates(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Updates (n, d) of norms around the bound, a third of each common to all, as batches of text have it."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal(SIZE), rng.standard_normal((n, SIZE))
    sizes = CLIP * rng.uniform(0.7, 1.1, (n, 1))
    mixed = 0.6 * common + 0.8 * own
    result: NDArray[np.float32] = (mixed * sizes / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
    return result


def sums_of(config: RunConfig, n: int, lie: Callable[..., Lanes]) -> tuple[UpdateCodec, Lanes, NDArray[np.float64]]:
    """Return the codec, the sum of n owners of whom the last lies, and the honest mean of the others."""
    layout, plan = Layout(("t",), ((SIZE,),)), QuantizationPlan(3, n)
    codec = UpdateCodec.for_round(
        Round(config.client_plan, arrays={"clipping": {"step": np.array([CLIP_STEP])}}),
        config.build_task(),
        layout,
        plan,
        round_number=3,
        train=True,
        evaluate=False,
    )
    lanes, deltas = np.zeros(codec.num_lanes, np.uint64), updates(n)
    for i, delta in enumerate(deltas):
        encode = lie if i == n - 1 else UpdateCodec.encode
        lanes += encode(codec, Update(delta, 128.0, SUMS), np.random.default_rng(i), NO_STATES)
    return codec, lanes, deltas[:-1].astype(np.float64).mean(axis=0)


def moved(codec: UpdateCodec, total: Total, honest: NDArray[np.float64]) -> float:
    """How far one liar moves the mean from that of the others, in bounds of the norm."""
    return float(np.linalg.norm(codec.decode_mean(total)[0].delta - honest)) / CLIP


@pytest.mark.parametrize("n", [5, 12, 24])
@pytest.mark.parametrize("attack", ["scaled by -1e6", "all fields full", "sign flipped", "mean replaced"])
def test_attack_one_vector_moves_the_mean_by_a_small_multiple_of_an_honest_one(
    run_config: Config, benchmark: ModuleType, n: int, attack: str
) -> None:
    """With a range of its own for each tensor, learned from what owners said, it was 14 to 89 honest norms."""
    codec, lanes, honest = sums_of(run_config(), n, benchmark.ATTACKS[attack])
    total = codec.decode_sum(lanes)
    if attack == "mean replaced":  # it leaves its range, so that only the sum's binds
        assert np.linalg.norm(codec.decode_mean(total)[0].delta) <= CLIP * 1.001
    else:
        multiple = {"scaled by -1e6": 4.0, "all fields full": 4.0, "sign flipped": 1.0}[attack]
        assert moved(codec, total, honest) <= (multiple + 1.0) / n * 1.01


@pytest.mark.parametrize(
    ("n", "attack"), [(5, "scaled by -1e6"), (5, "all fields full"), (12, "all fields full")], ids=str
)
def test_attack_filled_fields_show_in_the_sum(run_config: Config, benchmark: ModuleType, n: int, attack: str) -> None:
    """In a random basis honest sums are as good as normal; what fills its fields is not. No vector is seen for that."""
    config = run_config()
    codec, lanes, _ = sums_of(config, n, benchmark.ATTACKS[attack])
    with pytest.raises(ImplausibleSum, match=r"^fields: their sum must be as good as normally distributed"):
        codec.decode_checked(lanes)
    codec, lanes, _ = sums_of(config, n, UpdateCodec.encode)
    codec.decode_checked(lanes)


@pytest.mark.parametrize("n", [5, 12])
def test_attack_a_mean_above_the_bound_is_not_used(run_config: Config, benchmark: ModuleType, n: int) -> None:
    codec, lanes, _ = sums_of(run_config(), n, lambda *given: benchmark.replaced(*given, -2.0))
    with pytest.raises(ImplausibleSum, match=r"^update: the norm of the sum must be at most"):
        codec.decode_checked(lanes)


class Heard(Observer):
    """Keeps what a person would read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def implausible(self, round_number: int, reason: str) -> None:
        self.lines.append("one owner or more")

    def rolled_back(self, round_number: int, to_round: int, loss: float | None) -> None:
        self.lines.append("back")


RUN = (
    "aggregation.type=secure",
    "aggregation.min_cohort=null",
    "evaluation.every=1",
    "num_rounds=4",
    "training.local_steps=8",
)


@pytest.mark.parametrize("attack", ["scaled by -1e6", "all fields full", "mean replaced", "sign flipped"])
def test_attack_no_lie_of_one_in_five_wrecks_a_run(
    lying: Any, run_config: Config, make_owners: Callable[..., Path], tmp_path: Path, attack: str
) -> None:
    """Secure sums, a liar that is in every round. The loss was thousands of nats; now it ends below where it began."""
    observer = Heard()
    outcome = lying.run(run_config(*RUN), attack, sorted(make_owners(5).iterdir()), tmp_path / "run", observer)
    assert outcome.final <= outcome.first + LAST_RISE
    if attack == "mean replaced":
        assert observer.lines
    if attack == "sign flipped":
        assert outcome.final < outcome.first - 0.3


def test_the_benchmark_prints_its_table(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--smoke"])
    benchmark.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("final", "none", "sign flipped"))
    assert printed.count("all rounds") == 2
