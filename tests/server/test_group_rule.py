"""Each group of the plan has a sum of its own, and the step is what most of them say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st
from tests.attacks.lies import LIES
from tests.attacks.test_attack_lies import SECURE, run

from agfl_client.ledger.ledger_state import History
from agfl_client.policy import Policy
from agfl_client.secure.sum_rules import sum_rules
from agfl_models.errors import ConfigError, ImplausibleSum, RoundError
from agfl_protocol.config.run_config import AggregationConfig, RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.plans.groups import groups_of
from agfl_protocol.plans.plan import Plan
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_server import app
from agfl_server.aggregation.aggregator import Aggregator, AttemptFailed, CohortSum, Groups, LaneCodec
from agfl_server.aggregation.group_rule import geometric_median
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.journal import Records
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine

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
        self.are_lies = False

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
        if self.failing.intersection(cohort):
            raise AttemptFailed("AGFL-ROUND-000", "lost", {}, is_spent=True, bad=cohort if self.are_lies else ())
        return self.inner.sum(grid, cohort, request, codec, timeout_s, groups, records)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    """What the server sums in this test."""
    genuine, kept = app.build_aggregator, Sums()

    def build(
        config: AggregationConfig, roster: SigningRoster | None, observer: Observer, secure_sum: app.SecureSumOf
    ) -> tuple[Aggregator, int]:
        kept.inner, least = genuine(config, roster, observer, secure_sum)
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
    assert [exchange for exchange, _ in sums.cohorts] == list(range(1, 10)), "two rounds and the last evaluation"
    assert all(cohort == GROUPS[exchange % 3] for exchange, cohort in sums.cohorts)
    assert load_checkpoint(tmp_path / "run" / "checkpoints", config.hash).row["clients"] == 12


@pytest.mark.parametrize("are_lies", [False, True])
def test_a_liars_group_is_outvoted_and_one_that_is_lost_is_not_left_out_of_three(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums, are_lies: bool
) -> None:
    """Of two groups one could lie unseen; of three, of which one was seen to lie, the others are two honest ones."""
    config, owners = run_config(*FEW), sorted(make_owners(12).iterdir())
    sums.failing, sums.are_lies = frozenset(GROUPS[0][:1]), are_lies
    if are_lies:
        start(config, owners, tmp_path / "run")
        assert load_checkpoint(tmp_path / "run" / "checkpoints", config.hash).row["clients"] == 8
        return
    with pytest.raises(RoundError, match="lost"):
        start(config, owners, tmp_path / "run")
    assert sum(cohort == GROUPS[0] for _, cohort in sums.cohorts) == config.aggregation.max_attempts
    assert all([cohort for _, cohort in sums.cohorts].count(group) == 1 for group in GROUPS[1:]), "nobody else again"


def test_two_groups_that_lie_end_a_run_of_three(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums
) -> None:
    sums.failing, sums.are_lies = frozenset({GROUPS[0][0], GROUPS[1][0]}), True
    with pytest.raises(ImplausibleSum, match="one of owner-"):
        start(run_config(*FEW), sorted(make_owners(12).iterdir()), tmp_path / "run")


def test_of_five_groups_one_may_be_lost_and_one_lie(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums
) -> None:
    five = groups_of([f"owner-{i:02}" for i in range(20)], 4)
    sums.failing = frozenset({five[0][0], five[3][0]})
    config = run_config(*FEW)
    start(config, sorted(make_owners(20).iterdir()), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoints", config.hash).row["clients"] == 12


@pytest.mark.parametrize("ends_at", [1, 3, 5])  # with no sum of its round, with all but one, and in a later round
def test_a_round_that_was_cut_short_goes_on_with_the_sums_that_it_had(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, sums: Sums, ends_at: int
) -> None:
    config, owners = run_config(*FEW), sorted(make_owners(12).iterdir())
    start(config, owners, tmp_path / "whole")
    whole = load_checkpoint(tmp_path / "whole" / "checkpoints", config.hash)
    sums.cohorts, sums.ends_at = [], ends_at
    with pytest.raises(KeyboardInterrupt):
        start(config, owners, tmp_path / "run")
    start(config, owners, tmp_path / "run", resume=True)
    state = load_checkpoint(tmp_path / "run" / "checkpoints", config.hash)
    assert state.model.tobytes() == whole.model.tobytes()
    assert [exchange for exchange, _ in sums.cohorts] == [*range(1, ends_at + 1), *range(ends_at, 10)]
    assert not list((tmp_path / "run" / "exchange").rglob("*.safetensors")), "a sum is held until its round is saved"


def test_an_owner_is_in_sums_of_its_group_alone_and_counts_no_others(run_config: Make) -> None:
    config = run_config(*BY_GROUPS)
    plan = Plan.of(config.client_plan, "5f0c", TWELVE, 4)
    assert [plan.draw(number) for number in range(3)] == list(plan.groups)
    own = plan.groups[1]
    entries: list[dict[str, Any]] = [
        {"n": 0, "event": event, "run": "5f0c", "round": 1, "exchange": 4, "names": own, "lost": [], **more}
        for event, more in (
            ("announced", {"stage": "", "kind": "sampled", "merges": None}),
            ("left", {}),
            ("signed", {}),
        )
    ]
    assert History(entries, own[0]).pairs("5f0c", own[0], plan.turns) == (1, 1), "4 is its second turn"
    assert History(entries, own[0]).pairs("5f0c", own[0]) == (1, 3)


@pytest.mark.parametrize("train", [True, False])
def test_attack_an_exchange_over_others_than_the_group_whose_turn_it_is(run_config: Make, train: bool) -> None:
    config = run_config(*BY_GROUPS)
    plan = Plan.of(config.client_plan, "5f0c", TWELVE, 4)
    for exchange in range(1, 4):
        request = wire.RoundRequest(
            run_id="5f0c",
            round=1,
            exchange=exchange,
            plan_hash=plan.hash,
            client_plan=config.client_plan.to_json(),
            train=train,
            evaluate=True,
            full=not train,
            model=np.zeros(3, np.float32),
            plan=QuantizationPlan(1, plan.room(all_owners=True)),
        )
        assert sum_rules(plan, config.client_plan, request, Policy(), None).drawn == set(GROUPS[exchange % 3])


def test_attack_one_of_twelve_moves_its_group_alone(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, owners = run_config(*BY_GROUPS), sorted(make_owners(12).glob("*.jsonl"))
    honest = run(config, owners, tmp_path / "honest", None, monkeypatch)
    for lie in ("loss", "full fields", "turned"):
        with pytest.MonkeyPatch.context() as patch:
            lying = run(config, owners, tmp_path / lie, LIES[lie], patch, tmp_path / "honest")
        assert not lying.line
        assert lying.loss < honest.loss + 0.1, lie
        assert not lying.told.named


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("aggregation.type=plain",), "needs type secure"),
        (("aggregation.cohort_size=8",), "no cohort_size"),
        (
            ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"),
            "scaffold needs group_rule mean",
        ),
        (("elastic={widths: [0.5, 1]}",), "elastic: needs aggregation.group_rule mean"),
    ],
)
def test_what_has_no_groups_is_refused(run_config: Make, overrides: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        run_config(*BY_GROUPS, *overrides)


def test_too_few_groups_are_refused_before_anything_is_written(
    run_config: Make, make_owners: MakeOwners, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"min_cohort: must make 3 groups or more .* got 4, which makes 2 of 11.*AGFL-CONFIG-072"
    ):
        start(run_config(*BY_GROUPS), sorted(make_owners(11).iterdir()), tmp_path / "run")
    assert not (tmp_path / "run" / "plan.json").exists()
