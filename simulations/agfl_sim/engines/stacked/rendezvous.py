"""Where the nodes of a round meet that train together: each comes on its thread, and the last one trains for all.

Who is in a group follows from the order of the messages, never from who comes first: the bits of a float32 sum may
depend on who else is in the stack.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import ConfigError
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork
from agfl_sim.engines.stacked.batches import NotStackable
from agfl_sim.engines.stacked.loop import train_together

_FAR = 1e-2  # in parts of an update's norm; with bfloat16 it is up to 4e-3
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
        self._outcomes: Mapping[int, LocalResult | BaseException | None] = {}
        self._changed = threading.Condition()

    def leave(self, number: int) -> None:
        """As of `Seat`."""
        with self._changed:
            self._awaited.discard(number)
            self._changed.notify_all()

    def train(self, number: int, work: LocalWork) -> LocalResult | None:
        """Return what came of the work once all are done; None where each is to train on its own.

        Raises:
            BaseException: what the owner's own batches raised, or ConfigError for lack of memory.
        """
        with self._changed:
            self._works[number] = work
            self._awaited.discard(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._awaited)
            leads, self._is_taken = not self._is_taken, True
        if leads:  # none of those who wait for it is waited for
            found = self._together.of_group(dict(sorted(self._works.items())))
            with self._changed:
                self._outcomes = found
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: bool(self._outcomes))
        outcome = self._outcomes.get(number)  # without one it comes after it had left
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Together(LocalTrainer):
    """Trains `size` owners at a time, as they sit, `groups` such at once; one that has no seat trains on its own."""

    def __init__(self, size: int, groups: int) -> None:
        self._size, self._turns = size, threading.Semaphore(groups)
        self._here, self._first = threading.local(), threading.Lock()
        self._told = set[str]()

    def seats(self, count: int) -> Iterator[Seat]:
        """Yield a seat for each of `count` nodes, in the order in which they are asked."""
        for start in range(0, count, self._size):
            size = min(self._size, count - start)
            group = Group(size, self)
            yield from (Seat(group, number) for number in range(size))

    @contextmanager
    def at(self, seat: Seat | None) -> Iterator[None]:
        """Let what this thread trains within the block have the seat; without one it waits for a turn of its own."""
        with nullcontext() if seat is not None else self._turns:
            self._here.seat = seat
            try:
                yield
            finally:
                self._here.seat = None

    def train(self, work: LocalWork) -> LocalResult:
        """As of `LocalTrainer`; raises what `Group.train` and `BatchTrainer.train` raise."""
        seat: Seat | None = getattr(self._here, "seat", None)
        if seat is None:
            return BatchTrainer().train(work)
        self._here.seat = None  # for once
        result = seat.group.train(seat.number, work)
        if result is not None:
            return result
        with self._turns:
            return BatchTrainer().train(work)

    def of_group(self, works: Mapping[int, LocalWork]) -> Mapping[int, LocalResult | BaseException | None]:
        """Return what came of each; None where each is to train on its own. It raises nothing: others wait for it.

        Whether a group is stacked follows from its own work alone, so it is the same each time.
        """
        nothing = dict.fromkeys(works)
        try:
            with self._turns:
                found = train_together(list(works.values()))
                self._compare(list(works.values()), found)
        except NotStackable as reason:
            if self._is_first("alone"):
                log.warning("owners train one at a time where they cannot be stacked: %s", reason)
            return nothing
        except torch.OutOfMemoryError:
            rule = "must have the memory to train so many owners at a time, and has not"
            error = ConfigError("AGFL-CONFIG-279", f"--engine stacked:{self._size}: {rule}")
            return dict.fromkeys(works, error)
        except BaseException as error:  # SystemExit, too, which a module of somebody's own may raise
            return dict.fromkeys(works, error)
        return dict(zip(works, found, strict=True))

    def _compare(self, works: Sequence[LocalWork], together: Sequence[LocalResult | Exception]) -> None:
        """Say once how far the smallest owner's update, of which most was padded, is from what it is alone."""
        results = [(work, one) for work, one in zip(works, together, strict=True) if isinstance(one, LocalResult)]
        if not results or not self._is_first("compared"):
            return
        work, result = min(results, key=lambda pair: pair[1].num_predictions)
        try:
            alone = BatchTrainer().train(replace(work, rng=deepcopy(work.rng)))
        except Exception as error:  # that it fails alone is no news to the others
            log.warning("an owner that trained together with others cannot be trained alone to compare: %s", error)
            return
        apart = distance(alone, result)
        line = "owners train %d at a time; trained alone, the smallest one's update differs by %.1e of its norm"
        log.log(logging.INFO if apart <= _FAR else logging.WARNING, line, self._size, apart)

    def _is_first(self, what: str) -> bool:
        with self._first:
            is_first = what not in self._told
            self._told.add(what)
            return is_first


def distance(one: LocalResult, other: LocalResult) -> float:
    """Return how far two deltas are apart, in parts of the norm of the first."""
    apart, norm = np.linalg.norm(one.delta - other.delta), np.linalg.norm(one.delta)
    return float(apart / norm) if norm else float(apart)
