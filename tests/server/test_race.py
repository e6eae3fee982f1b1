"""The race over recorded losses: who goes on, who is chosen, what it costs, and that a replay goes the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import RoundError
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.config.search_config import SearchConfig
from agfl_server.search.race import Measured, Race, run_race
from agfl_server.search.slate import Candidate, Slate
from agfl_sim.cli import DEFAULT_CONFIG, SHIPPED_CONFIGS

Losses = Mapping[str, Sequence[float | None]]
RunRace = Callable[..., tuple[Race, list[tuple[str, int]]]]


@pytest.fixture
def run() -> RunRace:
    """Run a race over `losses` (name -> after each rung); return it, and who trained in which order."""
    return lambda losses, flops=None, **settings: race_over(losses, flops or {}, **settings)


@cache
def any_run() -> RunConfig:
    return load_run_config(SHIPPED_CONFIGS / f"{DEFAULT_CONFIG}.yaml")


def race_over(losses: Losses, flops: Mapping[str, int], **settings: object) -> tuple[Race, list[tuple[str, int]]]:
    search = SearchConfig.model_validate(settings)
    slate = Slate(tuple(Candidate(name, any_run(), 1000, flops.get(name, 100)) for name in losses), {}, 100)
    rungs = search.rungs_of(16)
    ends = [sum(rungs[: i + 1]) for i in range(len(rungs))]
    order: list[tuple[str, int]] = []

    def measure(candidate: Candidate, rounds: int) -> Measured:
        order.append((candidate.name, rounds))
        loss = losses[candidate.name][ends.index(rounds)]
        return Measured(rounds, loss, "its loss is nan" if loss is None else "")

    return run_race(search, rungs, slate, measure, lambda race: None), order


@pytest.mark.parametrize(
    ("num_rounds", "rungs"), [(1, (1,)), (2, (2,)), (3, (1, 1, 1)), (16, (2, 2, 12)), (30, (3, 3, 24))]
)
def test_left_open_the_last_rung_ends_with_the_run(num_rounds: int, rungs: tuple[int, ...]) -> None:
    assert SearchConfig().rungs_of(num_rounds) == rungs


def test_the_configured_model_stays_to_the_last_rung(run: RunRace) -> None:
    """Two that learn faster at first are worse at the end."""
    losses = {"a": (1.0, 1.0, 1.0), "b": (2.0, 2.0), "configured": (9.0, 9.0, 0.5), "c": (3.0, 3.0), "d": (4.0, 4.0)}
    race, order = run(losses, rungs=(1, 1, 1), keep=0.6)
    assert order == [
        *((name, 1) for name in losses),
        ("a", 2), ("b", 2), ("configured", 2),  # one of the best three left for it
        ("a", 3), ("configured", 3),
    ]  # fmt: skip
    assert [runner.name for runner in race.alive] == ["configured"]
    race, _ = run({**losses, "configured": (9.0, 9.0, 1.1)}, rungs=(1, 1, 1), keep=0.6)
    assert [runner.name for runner in race.alive] == ["a"]


EIGHT = {name: (i + 1.0, 9.0 - i, 0.0) for i, name in enumerate("abcdefgh")}


def test_the_better_half_goes_on_and_candidates_take_turns_in_the_order_of_the_slate(run: RunRace) -> None:
    race, order = run(EIGHT, rungs=(4, 4, 8), tie=0.0)
    assert order == [
        *((name, 4) for name in "abcdefgh"),
        *((name, 8) for name in "abcd"),  # losses 9, 8, 7, 6: the last two go on
        *((name, 16) for name in "cd"),
    ]
    assert [runner.name for runner in race.alive] == ["c"]  # equal in all: the first of the slate
    assert race.runners[7].fate == "left after rung 1: 8. of 8, its score 8.0000 is 7.0000 above that of a"
    assert race.runners[0].fate == "left after rung 2: 4. of 4, its score 9.0000 is 3.0000 above that of d"


def test_rounds_are_counted_beside_those_of_an_exhaustive_search(run: RunRace) -> None:
    race, order = run(EIGHT, rungs=(4, 4, 8))
    assert race.candidate_rounds == 8 * 4 + 4 * 4 + 2 * 8 == 64
    assert race.exhaustive_rounds == 8 * 16
    assert len(order) == 14


def test_the_race_ends_when_one_is_left(run: RunRace) -> None:
    race, order = run({"a": (1.0, 1.0, 1.0), "b": (2.0, 2.0, 2.0), "c": (3.0, 3.0, 3.0)}, rungs=(1, 1, 1))
    assert [name for name, _ in order] == ["a", "b", "c"]
    assert [runner.name for runner in race.alive] == ["a"]


def test_of_candidates_within_the_tie_the_cheapest_is_first(run: RunRace) -> None:
    losses = {"a": (1.000,), "b": (1.009,), "c": (1.0101,)}
    flops = {"a": 300, "b": 200, "c": 100}
    assert [runner.name for runner in run(losses, flops, rungs=(1,), tie=0.01)[0].alive] == ["b"]
    assert [runner.name for runner in run(losses, flops, rungs=(1,), tie=0.02)[0].alive] == ["c"]
    assert [runner.name for runner in run(losses, flops, rungs=(1,), tie=0.0)[0].alive] == ["a"]


def test_cost_counts_by_doublings_of_the_configured_flops(run: RunRace) -> None:
    losses, flops = {"a": (1.0,), "b": (1.25,)}, {"a": 400, "b": 50}  # 2 doublings more, and 1 less
    for weight, chosen in ((0.0, "a"), (0.08, "a"), (0.09, "b")):
        race, _ = run(losses, flops, rungs=(1,), tie=0.0, cost_weight=weight)
        assert race.alive[0].name == chosen, weight
    assert race.score(race.runners[0]) == pytest.approx(1.0 + 2 * 0.09)
    assert race.score(race.runners[1]) == pytest.approx(1.25 - 0.09)


def test_a_candidate_without_a_finite_loss_dies_and_takes_no_place(run: RunRace) -> None:
    losses: Losses = {"a": (None,), "b": (3.0, 3.0), "c": (2.0, None), "d": (4.0,)}
    race, order = run(losses, rungs=(1, 1))
    assert order == [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("b", 2), ("c", 2)]
    assert race.runners[0].fate == "died in rung 1: its loss is nan"
    assert race.runners[2].fate == "died in rung 2: its loss is nan"
    assert [runner.name for runner in race.alive] == ["b"]


def test_a_race_that_nobody_survives_is_refused(run: RunRace) -> None:
    with pytest.raises(RoundError, match="a candidate must have a finite loss after rung 1, none has"):
        run({"a": (None,), "b": (None,)}, rungs=(1,))


@given(
    losses=st.lists(st.lists(st.none() | st.floats(0.1, 9.0), min_size=3, max_size=3), min_size=2, max_size=9),
    keep=st.floats(0.1, 0.9),
)
def test_any_race_ends_with_one_that_lives_or_none_does(losses: list[list[float | None]], keep: float) -> None:
    names = {f"c{i}" if i else "configured": row for i, row in enumerate(losses)}
    try:
        race, order = race_over(names, {}, rungs=(1, 2, 3), keep=keep)
    except RoundError:
        return
    assert len(race.alive) == 1
    assert race.alive[0].measured[-1].loss is not None
    assert len(set(order)) == len(order)
    assert race.candidate_rounds == sum({name: rounds for name, rounds in order}.values()) <= race.exhaustive_rounds
