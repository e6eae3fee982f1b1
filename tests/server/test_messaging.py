"""How long stragglers are waited for: a multiple of what the others took, once enough of them answered."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from agfl_server.transport import messaging
from agfl_server.transport.messaging import ask_nodes, straggler_wait_s
from agfl_sim.engines.grid import InProcessGrid


class After(ClientApp):
    """A node that answers after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __call__(self, message: Message, context: Context) -> Message:
        time.sleep(self.seconds)
        return Message(RecordDict(), reply_to=message)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[int], float]]:
    """Ask nodes that answer after so many seconds each; return who did, and how long that took."""
    monkeypatch.setattr(messaging, "_STRAGGLER_S", 0.3)

    def ask(
        times: list[float], enough: int | None, timeout_s: float = 1.5, waits_for_all: bool = False
    ) -> tuple[list[int], float]:
        nodes_ = {i: After(seconds) for i, seconds in enumerate(times, start=1)}
        with InProcessGrid(nodes_, len(times), waits_for_all=waits_for_all) as grid:
            started = time.monotonic()
            requests = [Message(RecordDict(), node, "train") for node in range(1, len(times) + 1)]
            nodes = [node for node, _ in ask_nodes(grid, requests, timeout_s, enough=enough)]
            return sorted(nodes), time.monotonic() - started

    return ask


def test_one_that_is_silent_costs_a_multiple_of_what_the_others_took(
    ask: Callable[..., tuple[list[int], float]],
) -> None:
    nodes, seconds = ask([0.0, 0.0, 0.0, 2.0], 3)
    assert nodes == [1, 2, 3]
    assert seconds < 1.2


def test_in_a_simulation_nobody_is_late(ask: Callable[..., tuple[list[int], float]]) -> None:
    """Else a machine that is busy would decide who is in a sum, and a run would not repeat."""
    assert ask([0.0, 0.0, 0.0, 1.0], 3)[0] == [1, 2, 3]
    assert ask([0.0, 0.0, 0.0, 1.0], 3, waits_for_all=True)[0] == [1, 2, 3, 4]


def test_one_without_whom_there_is_no_sum_is_waited_for(ask: Callable[..., tuple[list[int], float]]) -> None:
    assert ask([0.0, 0.0, 0.0, 1.0], 4)[0] == [1, 2, 3, 4]


def test_half_must_have_answered_before_anybody_is_late(ask: Callable[..., tuple[list[int], float]]) -> None:
    assert ask([0.0, 1.0, 1.0, 1.0], 1)[0] == [1, 2, 3, 4]


def test_who_is_somewhat_slower_than_others_is_waited_for() -> None:
    assert straggler_wait_s([100.0, 90.0, 110.0]) == 330.0
    assert straggler_wait_s([0.1]) > 30
