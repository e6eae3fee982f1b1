"""Workers of a simulation that start at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.forked_workers import ForkedWorker

from agfl_sim.engines.workers import process_link


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ForkedWorker]]:
    """All that are started, without the seconds that a new interpreter takes."""
    started: list[ForkedWorker] = []

    def launch(descriptor: int) -> ForkedWorker:
        started.append(ForkedWorker(descriptor))
        return started[-1]

    monkeypatch.setattr(process_link, "launch", launch)
    yield started
    for worker in started:
        assert worker.wait(20) is not None
