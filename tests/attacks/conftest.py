"""Owners who approve whatever a hostile server proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hostile_server import HostileServer
from tests.repeats_world import SECURE

from agfl_client.policy import Policy
from agfl_protocol.config.run_config import RunConfig


@pytest.fixture
def serve(
    run_config: Callable[..., RunConfig], make_owners: Callable[[int], Path], tmp_path: Path
) -> Callable[..., HostileServer]:
    """Return a hostile server over `owners` owners of the tiny run with overrides, whose plan they all approved."""

    def make(
        *overrides: str, owners: int = 5, policy: Policy | None = None, widths: Sequence[float] = ()
    ) -> HostileServer:
        config = run_config(*SECURE, *overrides)
        files = sorted(make_owners(owners).glob("*.jsonl"))
        folder = tmp_path / f"nodes-{len(list(tmp_path.glob('nodes-*')))}"
        server = HostileServer(config, files, folder, policy, widths, seed=1)
        server.propose()
        return server

    return make
