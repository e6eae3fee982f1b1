"""What the driver of a run and its workers say to each other: plain data and bytes, pickled by our own processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from agfl_sim.engines.simulated_owners import SimulatedOwner, SimulatedOwners

ClassPath: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Begin:
    """To a new worker. engine: by name; classes: (module, name) of the researcher's own that the run is made of.

    owners: those of the worker whom it is to have at once.
    """

    engine: str
    owners: SimulatedOwners
    folder: Path
    classes: tuple[ClassPath, ...]


@dataclass(frozen=True)
class Clear:
    """To a worker: the objects that it got so far are not needed any more. is_over: neither is the last exchange."""

    is_over: bool


@dataclass(frozen=True)
class Request:
    """To a worker: a message for a node. It consists of `objects`, by id; those that were sent before may be None.

    secret: where an exchange begins, what the node draws from in it. owner: whose the node is, where the worker has not
    heard of it.
    """

    node: int
    message_id: str
    object_id: str
    objects: Mapping[str, bytes | None] = field(repr=False)
    secret: bytes | None = field(repr=False)
    owner: SimulatedOwner | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Ready:
    """From a worker: its nodes are there."""


@dataclass(frozen=True)
class Refusal:
    """From a worker that cannot begin, or cannot open a node: an error for a person.

    kind: its class in agfl_models.errors, or the base.
    """

    kind: str
    code: str
    sentence: str


@dataclass(frozen=True)
class Reply:
    """From a worker: the reply to the request under way."""

    object_id: str
    contents: Mapping[str, bytes]


@dataclass(frozen=True)
class Defect:
    """From a worker: a node failed as none should."""

    trace: str


@dataclass(frozen=True)
class LogLine:
    """From a worker: what a logger said, for the driver's logger of that name."""

    logger: str
    level: int
    text: str
