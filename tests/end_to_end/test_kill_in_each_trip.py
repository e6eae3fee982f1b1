"""kill -9 of a real client in each trip of the secure sum: an exact sum or a clean abort, never a wrong sum."""

from __future__ import annotations

import json
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
ABORTS = {"advertise": True, "share": True, "mask": True, "agree": False, "unmask": False}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five owners, one round, and its plain simulation."""
    config = CONFIG.replace("num_rounds: 5", "num_rounds: 1").replace("num_owners: 3", "num_owners: 5")
    config = config.replace("aggregation: {", "aggregation: {min_cohort: 5, ")
    site = Site(tmp_path_factory.mktemp("five"))
    site.prepare(config, "aggregation.type=plain")
    return site.folder


@pytest.mark.parametrize("trip", ABORTS)
def test_kill_in_each_trip(site: Site, trip: str) -> None:
    victim = site.owners[2]
    server, port = site.start_server()
    for owner in site.owners:
        if owner != victim:
            site.start_client(owner, port)
    script = site.folder / "dying.py"
    script.write_text(DIES_IN_TRIP)
    dying = site.start("dying", script, trip, *site.client_arguments(victim, port))
    assert dying.wait() == -9, dying.output()
    site.start_client(victim, port)
    assert server.wait() == 0, server.output()
    assert ("exchange 1 brought no sum" in server.output()) == ABORTS[trip]
    assert f"{victim.stem} refused" in server.output()
    rows = [json.loads(line) for line in (site.federation / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["clients"] == 5
    assert (site.model == site.simulated_model) == (trip != "mask")
