"""How much the network may take of the server: connections, time, bytes and calls; and how long a reply may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

MIB = 2**20
SMALL_REPLY_BYTES = MIB  # any reply without a vector: shares for a thousand peers are a quarter of it


@dataclass(frozen=True)
class Limits:
    """Bounds on what anybody who reaches the port can make the server do or keep. Tests make them small.

    unproven: connections on which nobody has signed a request yet; past it the oldest of the most crowded address goes.
    body_bytes, tree_bytes, object_bytes: of a request that announces a reply (tree), brings a part of it (object), or
    does anything else. Flower cuts arrays into objects of 5 MiB.
    uploads_at_once, calls_per_s, calls_at_once: of one node; further ones wait.
    signatures: of one node that are remembered, so that none is good twice.
    """

    connections: int = 4096
    unproven: int = 128  # each takes 0.3 MB
    unproven_per_address: int = 64
    per_node: int = 8
    headers_bytes: int = 32 * 2**10
    headers_s: float = 15.0
    silence_s: float = 60.0
    keep_alive_s: float = 300.0  # also the time to send or read 5 MiB over a slow line
    body_bytes: int = 16 * 2**10
    tree_bytes: int = 256 * 2**10
    object_bytes: int = 5 * MIB + 64 * 2**10
    uploads_at_once: int = 2  # Flower's client sends two
    calls_per_s: float = 50.0  # a fifth of a processor
    calls_at_once: int = 400
    signatures: int = 2**15
    reserved_files: int = 128


@runtime_checkable
class BoundedReplies(Protocol):
    """A Grid that takes no more of a reply than was said with the request."""

    def push_bounded(self, messages: Iterable[Message], max_reply_bytes: int) -> Iterable[str]:
        """As Grid.push_messages; the reply to each message may have at most `max_reply_bytes`."""


@runtime_checkable
class ForgettingGrid(Protocol):
    """A Grid that holds nothing for which nobody waits."""

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop these messages with their content, and whatever came of their replies."""


def vector_reply_bytes(num_lanes: int) -> int:
    """Return the largest reply that holds a vector of `num_lanes` lanes (uint64)."""
    return 8 * num_lanes + SMALL_REPLY_BYTES


def push(grid: Grid, messages: Iterable[Message], max_reply_bytes: int) -> list[str]:
    """Push messages; where the grid is ours, no reply may be longer than `max_reply_bytes`."""
    if isinstance(grid, BoundedReplies):
        return list(grid.push_bounded(messages, max_reply_bytes))
    return list(grid.push_messages(messages))


def forget(grid: Grid, message_ids: Iterable[str]) -> None:
    """Tell the grid, where it is ours, that nobody waits for these replies any more."""
    if isinstance(grid, ForgettingGrid):
        grid.forget(message_ids)
