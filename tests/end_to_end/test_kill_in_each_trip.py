"""kill -9 of a real client in each trip of the secure sum: an exact sum or a clean abort, never a wrong sum."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.end_to_end.conftest import CONFIG, Site

# The real client, but for the moment at which it dies: where it is asked for the trip.
DIES_IN_TRIP = """
import os, signal, sys
from agfl_client.secure.secure_member import SecureMember

trip = sys.argv.pop(1)
setattr(SecureMember, trip, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
from agfl_client.cli import main
main()
"""
# Whoever is lost before its masked vector came is missing in the sum, so the exchange is too small and the round goes
# on: under the same number, so with the same bits, if no vector left before, and else under the next one. Whoever is
# lost later is in the sum, and a quorum of four can open it.
ABORTS = {"advertise": True, "share": True, "agree": False, "unmask": False}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five owners, a round for each trip that changes no bit, and its plain simulation."""
    config = CONFIG.replace("num_rounds: 5", f"num_rounds: {len(ABORTS)}").replace("num_owners: 3", "num_owners: 5")
    config = config.replace("aggregation: {", "aggregation: {min_cohort: 5, ")
    site = Site(tmp_path_factory.mktemp("five"))
    site.prepare(config, "aggregation.type=plain")
    return site.folder


def survivors_of(site: Site, trips: Iterable[str]) -> tuple[str, list[int]]:
    """Kill one client once in each of the trips; return what the server said, and how many took part in each round."""
    victim = site.owners[2]
    server, port = site.start_server()
    for owner in site.owners:
        if owner != victim:
            site.start_client(owner, port)
    script = site.folder / "dying.py"
    script.write_text(DIES_IN_TRIP)
    for trip in trips:
        dying = site.start("dying", script, trip, *site.client_arguments(victim, port))
        assert dying.wait() == -9, dying.output()
    site.start_client(victim, port)
    assert server.wait() == 0, server.output()
    rows = [json.loads(line) for line in (site.federation / "run" / "metrics.jsonl").read_text().splitlines()]
    return server.output(), [row["clients"] for row in rows[1:]]


def test_a_kill_before_or_after_its_vector_left_changes_no_bit(site: Site) -> None:
    said, clients = survivors_of(site, ABORTS)
    assert said.count(f"{site.owners[2].stem} refused") == len(ABORTS)
    assert said.count("brought no sum") == sum(ABORTS.values())
    assert clients == [5] * len(ABORTS)
    assert site.model == site.simulated_model


def test_a_kill_when_vectors_may_have_left_costs_an_exchange(site: Site) -> None:
    said, clients = survivors_of(site, ["mask"])
    assert f"{site.owners[2].stem} refused" in said
    assert "exchange 1 brought no sum" in said
    assert clients == [5] * len(ABORTS)
    assert site.model != site.simulated_model
