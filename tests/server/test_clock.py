"""A node whose clock is up to 300 s ahead or behind works; past it, the line says the truth."""

from __future__ import annotations

import re
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pytest
from flwr.clientapp import ClientApp

from agfl_client import keys
from agfl_client.transport import request_signer
from agfl_client.transport.supernode import run_node
from agfl_models.errors import IdentityError

if TYPE_CHECKING:
    from tests.server.conftest import Site


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> object:
    def by(seconds: float) -> None:
        shifted = SimpleNamespace(
            time=lambda: time.time() + seconds, time_ns=lambda: time.time_ns() + int(seconds * 10**9)
        )
        monkeypatch.setattr(request_signer, "time", shifted)

    return by


@pytest.mark.parametrize("seconds", [5, 20, 290, -290])
def test_a_clock_within_300_s_is_let_in(seconds: float, site: Site, set_clock: object) -> None:
    assert callable(set_clock)
    set_clock(seconds)
    with site.superlink() as server, site.node_thread("alice", server.port, ClientApp()):
        site.wait_until(lambda: len(list(server.grid.get_node_ids())) == 1)


@pytest.mark.parametrize(("seconds", "direction"), [(400, "ahead of"), (-400, "behind")])
def test_a_clock_past_it_is_refused_and_told_by_how_much(
    seconds: float, direction: str, site: Site, set_clock: object
) -> None:
    assert callable(set_clock)
    set_clock(seconds)
    key, stop = keys.load(site.keys("alice")).transport, threading.Event()
    with site.superlink() as server, pytest.raises(IdentityError) as refusal:
        run_node(f"127.0.0.1:{server.port}", site.ca, key, ClientApp(), stop=stop, finished=lambda: False, max_wait_s=5)
    found = re.fullmatch(
        rf"clock: must be within 300 s of the server's, but is (\d+) s {direction} it \[AGFL-IDENTITY-046\]",
        str(refusal.value),
    )
    assert found is not None, str(refusal.value)
    assert int(found[1]) == pytest.approx(400, abs=3)


def test_another_refusal_does_not_blame_the_clock() -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    assert request_signer.clock_problem(httpx.Response(401, headers={"date": date})) is None
    assert request_signer.clock_problem(httpx.Response(401, headers={"date": "yesterday"})) is None
    assert request_signer.clock_problem(httpx.Response(401)) is None
