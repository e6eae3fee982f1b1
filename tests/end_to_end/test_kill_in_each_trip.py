"""kill -9 of a real client in each trip of the secure sum: an exact sum or a clean abort, never a wrong sum."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.end_to_end.conftest import CONFIG, Site

# Whoever is lost before its masked vector came is missing in the sum, so the exchange is too small and the round goes
# on: under the same number, so with the same bits, if no vector left before, and else under the next one. Whoever is
# lost later is in the sum, and a quorum of four can open it.
ABORTS = {"advertise": True, "share": True, "agree": False, "unmask": False}
NUM_ROUNDS = 2  # the first three deaths are in the first round, the last one in the second; all evaluate it


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five owners, and the plain simulation of their run."""
    config = CONFIG.replace("num_rounds: 5", f"num_rounds: {NUM_ROUNDS}").replace("num_owners: 3", "num_owners: 5")
    config = config.replace("aggregation: {", "aggregation: {min_cohort: 5, ")
    site = Site(tmp_path_factory.mktemp("five"))
    site.prepare(config, "aggregation.type=plain")
    return site.folder


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def survivors_of(site: Site, trips: Iterable[str], *options: str) -> tuple[str, list[dict[str, float]]]:
    """Kill one client once in each of the trips; return what the server said, and its rows of rounds."""
    victim = site.owners[2]
    server, port = site.start_server(*options)
    for owner in site.owners:
        if owner != victim:
            site.start_client(owner, port)
    for trip in trips:
        site.start_until_killed(victim, port, trip)
    site.start_client(victim, port)
    assert server.wait() == 0, server.output()
    return server.output(), rows_of(site.federation / "run")[1:]


def first_loss_of_simulation(site: Site) -> float:
    return rows_of(site.folder / "simulated")[1]["train/loss"]


def test_a_kill_before_or_after_its_vector_left_changes_no_bit(site: Site) -> None:
    said, rounds = survivors_of(site, ABORTS)
    assert said.count(f"{site.owners[2].stem} refused") == len(ABORTS)
    assert said.count("brought no sum") == sum(ABORTS.values())
    assert [row["clients"] for row in rounds] == [5] * NUM_ROUNDS
    assert site.model == site.simulated_model
    assert rounds[0]["train/loss"] == first_loss_of_simulation(site)


def test_a_kill_when_vectors_may_have_left_costs_an_exchange(site: Site) -> None:
    said, (row,) = survivors_of(site, ["mask"], "--set", "num_rounds=1")
    assert f"{site.owners[2].stem} refused" in said
    assert "exchange 1 brought no sum" in said
    assert row["clients"] == 5
    assert row["train/loss"] != first_loss_of_simulation(site), "its draws are those of another exchange"
