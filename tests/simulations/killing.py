"""Deaths at a chosen moment of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from flwr.app import Message
from flwr.serverapp import Grid

from agfl_server.aggregation import plain_sum, secure_sum


def kill_in(patch: pytest.MonkeyPatch, kind: str, kill: Callable[[], None], time: int = 2) -> list[str]:
    """Have `kill` called once two nodes have answered in the `time`-th trip of its kind; return a list of its calls."""
    genuine, trips, killed = (
        vars(secure_sum)["ask_nodes"],
        [0],
        list[str](),
    )  # perhaps patched for another death already

    def ask(grid: Grid, requests: Iterable[Message], timeout_s: float, *bounds: int) -> Iterator[tuple[int, Message]]:
        requests = list(requests)
        trips[0] += requests[0].metadata.message_type == kind
        for number, found in enumerate(genuine(grid, requests, timeout_s, *bounds)):
            at_last = requests[0].metadata.message_type == kind and trips[0] >= time
            if at_last and number == 1 and not killed:
                kill()
                killed.append(kind)
            yield found

    patch.setattr(secure_sum, "ask_nodes", ask)
    patch.setattr(plain_sum, "ask_nodes", ask)
    return killed
