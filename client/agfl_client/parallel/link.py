"""What a node and its other ranks say to each other, over a line of their own: plain data and tensors."""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agfl_client.parallel.choice import Sharing
from agfl_client.parallel.plain import NotPlainError, decode, encode, loaded_dataclass, name_of


class RankLostError(Exception):
    """A rank is gone, silent for too long, or none of ours: others may train the round."""


@dataclass(frozen=True)
class Begin:
    """To a new rank.

    world: how many there are; address: of this machine, where its other ranks are, too; meet_s: how long they wait for
    each other; secret: by which they know each other. What a rank of another machine knows better, it says in place
    of the node: device, address, num_threads, pretrained.
    """

    rank: int
    world: int
    device: str
    address: str
    num_threads: int
    plugins: tuple[str, ...]
    pretrained: Path | None
    meet_s: float
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Join:
    """From a rank of another machine, before anything else: what it is."""

    version: str
    device: str


@dataclass(frozen=True)
class Refused:
    """To a rank of another machine: it cannot be one, and why."""

    line: str


@dataclass(frozen=True)
class Ready:
    """From a rank: all is loaded, and it is about to join the others."""


@dataclass(frozen=True)
class Note:
    """To or from a rank: what one of them leaves for all where they meet, as where it listens."""

    key: str
    value: bytes


@dataclass(frozen=True)
class Met:
    """From a rank: it is connected to all others."""


@dataclass(frozen=True)
class Recipe:
    """What a rank makes its model and task of. plan: the client plan's JSON."""

    sharing: Sharing
    plan: str
    num_rings: int


@dataclass(frozen=True)
class Train:
    """To a rank: a round begins, whose weights follow by the group.

    draws: the state of the node's generator, which each `Share` sets; shaping: (scale, type of the shift that follows,
    pull) of each gradient; first_step: as that of `LocalWork`.
    """

    recipe: Recipe
    draws: Any = field(repr=False)
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


TO_RANK = (Begin, Refused, Note, Train, Share, LastShare, GiveUp, Forget)
FROM_RANK = (Join, Ready, Note, Met)
_LENGTH = struct.Struct(">Q")


class Line:
    """One end of the line between the node and a rank. hears: the types of what the other end may say."""

    def __init__(self, connected: socket.socket, hears: tuple[type[Any], ...], patience_s: float | None = None) -> None:
        """Take a socket over; `send` waits for one that does not read for so long."""
        self._socket, self._patience_s = connected, patience_s
        self._hears = {name_of(kind): kind for kind in hears}

    def fileno(self) -> int:
        """Return the descriptor, for who waits for several lines."""
        return self._socket.fileno()

    def send(self, content: object) -> None:
        """Send it whole; raises RankLostError once the other side is gone, or has not read for too long."""
        encoded = encode(content)
        try:
            self._socket.settimeout(self._patience_s)
            self._socket.sendall(_LENGTH.pack(len(encoded)) + encoded)
        except OSError as error:
            raise RankLostError("a rank is gone, or does not read") from error

    def receive(self, timeout_s: float | None = None) -> object:
        """Return what comes next; raises RankLostError once the other side is gone, or silent for too long."""
        try:
            self._socket.settimeout(timeout_s if timeout_s is None else max(timeout_s, 1e-3))
            encoded = self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0])
        except TimeoutError as error:
            raise RankLostError("a rank is silent") from error
        except (OSError, EOFError) as error:
            raise RankLostError("a rank is gone") from error
        try:
            return decode(encoded, self._type_of)
        except NotPlainError as error:
            raise RankLostError(f"a rank sends what is {error}") from error

    def is_left(self, within_s: float | None) -> bool:
        """Whether the other end hangs up within so many seconds, whatever it sent before; None waits for it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(None if within_s is None else 1000 * within_s))

    def hang_up(self) -> None:
        """End what either side waits for on this line; of another thread, too."""
        try:
            # Not that of an SSLSocket, which takes the session from under whoever is using it.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
        except OSError:
            return  # the other end has

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _type_of(self, name: str) -> type[Any]:
        if name in self._hears:
            return self._hears[name]
        if Train not in self._hears.values():  # a node makes of a rank's words nothing but these
            raise NotPlainError(f"{name} is none of {', '.join(self._hears)}")
        return loaded_dataclass(name)

    def _read(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            piece = self._socket.recv(min(size - len(content), 1 << 20))
            if not piece:
                raise EOFError
            content += piece
        return bytes(content)
