"""Where the nodes of a round meet that train together: each comes on its thread, and the last one trains for all.

Who is in a group follows from the order of the messages, never from who comes first: the bits of a float32 sum may
depend on who else is in the stack.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import ConfigError
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork
from agfl_sim.engines.stacked.loop import NotStackable, distance, train_together

log = logging.getLogger("agfl.simulate")


@dataclass(frozen=True)
class Seat:
    """A node's place in a group."""

    group: Group
    number: int

    def leave(self) -> None:
        """Do not have the others wait any more for a node that has not come."""
        self.group.leave(self.number)


class Group:
    """Nodes that were asked together; those that come to train do so at once."""

    def __init__(self, size: int, together: Together) -> None:
        self._together, self._awaited = together, set(range(size))
        self._works: dict[int, LocalWork] = {}
        self._is_taken = False
        self._outcomes: Mapping[int, LocalResult | Exception | None] = {}
        self._changed = threading.Condition()

    def leave(self, number: int) -> None:
        """As of `Seat`."""
        with self._changed:
            self._awaited.discard(number)
            self._changed.notify_all()

    def train(self, number: int, work: LocalWork) -> LocalResult | None:
        """Return what came of the work once all are done; None where each is to train on its own.

        Raises:
            Exception: what the owner's own batches raised, or ConfigError for lack of memory.
        """
        with self._changed:
            self._works[number] = work
            self._awaited.discard(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._awaited)
            leads, self._is_taken = not self._is_taken, True
        if leads:
            found = self._together.of_group(dict(sorted(self._works.items())))
            with self._changed:
                self._outcomes = found
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: bool(self._outcomes))
        outcome = self._outcomes[number]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Together(LocalTrainer):
    """Trains `size` owners at a time, as they sit; one that has no seat trains on its own."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._here, self._first = threading.local(), threading.Lock()
        self._is_compared = self._is_alone = False

    def seats(self, count: int) -> Iterator[Seat]:
        """Yield a seat for each of `count` nodes, in the order in which they are asked."""
        for start in range(0, count, self._size):
            size = min(self._size, count - start)
            group = Group(size, self)
            yield from (Seat(group, number) for number in range(size))

    @contextmanager
    def at(self, seat: Seat | None) -> Iterator[None]:
        """Let what this thread trains within the block have the seat."""
        self._here.seat = seat
        try:
            yield
        finally:
            self._here.seat = None

    def train(self, work: LocalWork) -> LocalResult:
        """As of `LocalTrainer`; raises what `Group.train` and `BatchTrainer.train` raise."""
        seat: Seat | None = getattr(self._here, "seat", None)
        result = None if seat is None else seat.group.train(seat.number, work)
        return BatchTrainer().train(work) if result is None else result

    def of_group(self, works: Mapping[int, LocalWork]) -> Mapping[int, LocalResult | Exception | None]:
        """Return what came of each; None where each is to train on its own. It raises nothing: others wait for it."""
        nothing = dict.fromkeys(works)
        if self._is_alone:
            return nothing
        try:
            found = train_together(list(works.values()))
            self._compare(next(iter(works.values())), found[0])
        except NotStackable as reason:
            self._go_alone(str(reason))
            return nothing
        except torch.OutOfMemoryError:
            rule = "must have the memory to train so many owners at a time, and has not"
            error = ConfigError("AGFL-CONFIG-279", f"--engine stacked:{self._size}: {rule}")
            return dict.fromkeys(works, error)
        except Exception as error:
            return dict.fromkeys(works, error)
        return dict(zip(works, found, strict=True))

    def _compare(self, work: LocalWork, together: LocalResult | Exception) -> None:
        """Say once how far an owner's update is from what it is without the others."""
        with self._first:
            is_first, self._is_compared = not self._is_compared, True
        if is_first and isinstance(together, LocalResult):
            apart = distance(BatchTrainer().train(replace(work, rng=deepcopy(work.rng))), together)
            line = "owners train %d at a time; trained alone, the first one's update differs by %.1e of its norm"
            log.info(line, self._size, apart)

    def _go_alone(self, reason: str) -> None:
        with self._first:
            is_first, self._is_alone = not self._is_alone, True
        if is_first:
            log.warning("owners train one at a time, since this run's model cannot be stacked: %s", reason)
