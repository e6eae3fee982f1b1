"""Each group of the plan has a sum of its own, and the step is what most of them say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st
from tests.attacks.lies import LIES
from tests.attacks.test_attack_lies import SECURE, run

from agfl_client.ledger_file import read_entries
from agfl_models.errors import ConfigError, RoundError
from agfl_protocol import wire
from agfl_protocol.groups import groups_of
from agfl_protocol.run_config import AggregationConfig, RunConfig
from agfl_protocol.secagg.identity import SigningRoster
from agfl_server import app
from agfl_server.aggregator import Aggregator, AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.checkpoint import load_checkpoint
from agfl_server.group_rule import geometric_median
from agfl_server.journal import Journal, Records
from agfl_server.observer import Observer
from agfl_sim.run import InlineEngine

BY_GROUPS = (*SECURE, "aggregation.group_rule=geometric_median")
FEW = (*BY_GROUPS, "num_rounds=2", "training.local_steps=1")
TWELVE = [f"owner-{i:02}" for i in range(12)]
GROUPS = groups_of(TWELVE, 4)
Make = Callable[..., RunConfig]
MakeOwners = Callable[[int], Path]


@given(st.integers(0, 2**32), st.integers(3, 9), st.floats(0, 1e3))
def test_the_median_has_the_least_distances_and_one_far_point_moves_it_little(seed: int, n: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 5)).astype(np.float32)
    median = geometric_median(list(points))

    def distances(point: np.ndarray) -> float:
        return float(np.linalg.norm(points - point, axis=1).sum())

    others = [points.mean(0), *points, *(median + 0.1 * rng.standard_normal((8, 5)))]
    assert distances(median) <= 1.01 * min(map(distances, others))
    lied = geometric_median([*points[:-1], points[-1] * np.float32(far)])
    honest = points[:-1]
    # With a minority of one of n, it stays within 2 (n - 1) / (n - 2) radii of the others (Minsker 2015, Lemma 2.1).
    radius = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    assert np.linalg.norm(lied - honest.mean(0)) <= (2 * (n - 1) / (n - 2) + 0.1) * radius


def test_the_median_of_the_same_points_is_that_point() -> None:
    point = np.array([1.0, -2.0, 3.0], np.float32)
    assert np.allclose(geometric_median([point] * 3), point, rtol=1e-6)


class Sums:
    """Keeps the exchanges and cohorts of its sums; fails or ends in those that it is told."""

    def __init__(self) -> None:
        self.inner: Aggregator
        self.cohorts: list[tuple[int, tuple[str, ...]]] = []
        self.failing: frozenset[str] = frozenset()
        self.ends_at = 0

    def requiring(self, min_cohort: int) -> Aggregator:
        raise AssertionError(min_cohort)

    def sum(
        self,
        grid: Grid,
        cohort: Mapping[str, int],
        request: wire.SumRequest,
        codec: LaneCodec,
        timeout_s: float,
        groups: Groups = (),
        records: Records | None = None,
    ) -> CohortSum:
        self.cohorts.append((request.exchange, tuple(cohort)))
        if len(self.cohorts) == self.ends_at:
            raise KeyboardInterrupt
        if self.failing.intersection(cohort) and len(cohort) < len(TWELVE):
            raise AttemptFailed("lost", {}, is_spent=True)
        return self.inner.sum(grid, cohort, request, codec, timeout_s, groups, records)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    """What the server sums in this test."""
    genuine, kept = app.build_aggregator, Sums()

    def build(config: AggregationConfig, roster: SigningRoster | None, observer: Observer) -> tuple[Aggregator, int]:
        kept.inner, least = genuine(config, roster, observer)
        return kept, least

    monkeypatch.setattr(app, "build_aggregator", build)
    return kept


def start(config: RunConfig, owners: Sequence[Path], folder: Path, *, resume: bool = False) -> None:
    InlineEngine(config, owners).run(folder, resume=resume, observer=Observer())


def test_each_group_is_summed_by_itself_in_an_exchange_of_its_own(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums
) -> None:
    config = run_config(*FEW)
    start(config, sorted(make_owners(12).iterdir()), tmp_path / "run")
    *trained, (last, everybody) = sums.cohorts
    assert [exchange for exchange, _ in trained] == list(range(1, 7))
    assert sorted(cohort for _, cohort in trained) == sorted(2 * GROUPS)
    assert (last, sorted(everybody)) == (7, TWELVE)
    assert load_checkpoint(tmp_path / "run" / "checkpoints", config.hash).row["clients"] == 12


def test_a_round_goes_on_without_a_group_and_ends_without_most(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums
) -> None:
    config, owners = run_config(*FEW), sorted(make_owners(12).iterdir())
    sums.failing = frozenset(GROUPS[0][:1])
    start(config, owners, tmp_path / "one")
    assert load_checkpoint(tmp_path / "one" / "checkpoints", config.hash).row["clients"] == 8
    sums.failing |= {GROUPS[1][0]}
    with pytest.raises(RoundError, match="lost"):
        start(config, owners, tmp_path / "two")


@pytest.mark.parametrize("ends_at", [2, 3, 5])
def test_a_round_that_was_cut_short_goes_on_and_nobody_is_asked_twice_in_an_exchange(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums, ends_at: int
) -> None:
    config, owners = run_config(*FEW), sorted(make_owners(12).iterdir())
    sums.ends_at = ends_at
    with pytest.raises(KeyboardInterrupt):
        start(config, owners, tmp_path / "run")
    assert Journal(tmp_path / "run").current(0).cohort in GROUPS
    start(config, owners, tmp_path / "run", resume=True)
    state = load_checkpoint(tmp_path / "run" / "checkpoints", config.hash)
    assert (state.round, state.row["clients"]) == (2, 12)
    for path in (tmp_path / "run" / "nodes").iterdir():
        left = [e["exchange"] for e in read_entries(path / "ledger.jsonl") if e["event"] == "left"]
        assert len(left) == len(set(left)), "one vector an exchange"


def test_attack_one_of_twelve_moves_its_group_alone(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, owners = run_config(*BY_GROUPS), sorted(make_owners(12).glob("*.jsonl"))
    honest = run(config, owners, tmp_path / "honest", None, monkeypatch)
    for lie in ("loss", "full fields", "turned"):
        with pytest.MonkeyPatch.context() as patch:
            lying = run(config, owners, tmp_path / lie, LIES[lie], patch)
        assert not lying.line
        assert lying.loss < honest.loss + 0.1, lie
        assert not lying.told.named


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("aggregation.type=plain",), "needs type secure"),
        (("aggregation.cohort_size=8",), "no cohort_size"),
        (("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"), "owners without state"),
        (("elastic={widths: [0.5, 1]}",), "elastic: needs aggregation.group_rule mean"),
    ],
)
def test_what_has_no_groups_is_refused(run_config: Make, overrides: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        run_config(*BY_GROUPS, *overrides)


def test_too_few_groups_are_refused_before_anything_is_written(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"min_cohort: must make 3 groups or more .* got 4, which makes 2 of 11"):
        start(run_config(*BY_GROUPS), sorted(make_owners(11).iterdir()), tmp_path / "run")
    assert not (tmp_path / "run" / "plan.json").exists()
