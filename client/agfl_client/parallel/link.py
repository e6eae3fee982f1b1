"""What a node and its other ranks say to each other: plain data and tensors, pickled by our own processes."""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from agfl_client.parallel.choice import Sharing


class RankLostError(Exception):
    """A rank is gone, silent for too long, or none of ours: others may train the round."""


@dataclass(frozen=True)
class Begin:
    """To a new rank.

    store: the file where the ranks meet; meet_s: how long they wait for each other there; secret: by which they know
    each other.
    """

    rank: int
    devices: tuple[str, ...]
    num_threads: int
    plugins: tuple[str, ...]
    pretrained: Path | None
    store: Path
    meet_s: float
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Ready:
    """From a rank: all is loaded, and it is about to join the others."""


@dataclass(frozen=True)
class Recipe:
    """What a rank makes its model and task of. plan: the client plan's JSON."""

    sharing: Sharing
    plan: str
    num_rings: int


@dataclass(frozen=True)
class Train:
    """To a rank: a round begins, whose weights follow by the group.

    rng: as that of the node, which each `Share` sets; shaping: (scale, type of the shift that follows, pull) of each
    gradient; first_step: as that of `LocalWork`.
    """

    recipe: Recipe
    rng: np.random.Generator
    shaping: tuple[tuple[float, str | None, float], ...]
    first_step: int


@dataclass(frozen=True)
class Share:
    """To a rank: its rows of a batch. is_real: False where there were too few, so that these count nothing.

    draws: the state of the node's generator after the batch was drawn.
    """

    rows: Any = field(repr=False)
    is_real: bool
    draws: Any = field(repr=False)


@dataclass(frozen=True)
class LastShare:
    """To a rank: the epochs are over."""


@dataclass(frozen=True)
class GiveUp:
    """To a rank: nothing comes of this round."""


@dataclass(frozen=True)
class Forget:
    """To a rank: let go of the model."""


class Line:
    """One end of the line between the node and a rank."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @staticmethod
    def over(connected: socket.socket, patience_s: float) -> Line:
        """Return the line over a socket, which it takes; `send` waits for one that does not read for so long."""
        micros = int(patience_s * 1e6)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *divmod(micros, 10**6)))
        return Line(Connection(connected.detach()))

    def send(self, content: object) -> None:
        """Send it whole; raises RankLostError once the other side is gone, or has not read for too long."""
        # Not `Connection.send`, to which PyTorch teaches shared memory, which outlives a process that is killed.
        pickled = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.send_bytes(pickled)
        except OSError as error:
            raise RankLostError("a rank is gone, or does not read") from error

    def receive(self, timeout_s: float | None = None) -> object:
        """Return what comes next; raises RankLostError once the other side is gone, or silent for too long."""
        try:
            if not self._connection.poll(timeout_s):
                raise RankLostError("a rank is silent")
            pickled = self._connection.recv_bytes()
        except (OSError, EOFError) as error:
            raise RankLostError("a rank is gone") from error
        return pickle.loads(pickled)

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
