"""Where ranks leave each other their addresses: a copy on each, kept alike over the node's lines until all have met."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import wait

import torch.distributed as dist

from agfl_client.parallel.link import Line, Met, Note, RankLostError
from agfl_client.training.deadline import Deadline


class Meeting(dist.Store):  # type: ignore[name-defined, misc]
    """A store as PyTorch's process groups want one, which opens no port and no file.

    lines: the node's to all other ranks, or a rank's to the node; deadline: of what is waited for.
    """

    def __init__(self, lines: Sequence[Line], deadline: Deadline, is_node: bool) -> None:
        super().__init__()
        self._lines, self._deadline, self._is_node = lines, deadline, is_node
        self._notes: dict[str, bytes] = {}
        self._missing = len(lines)  # of those that have to say that they have met
        self._is_over = False

    def set(self, key: str, value: str | bytes) -> None:
        """Leave a note for all."""
        note = Note(key, value.encode() if isinstance(value, str) else bytes(value))
        self._notes[key] = note.value
        if not self._is_over:  # what a group notes later, it notes for itself
            self._pass_on(note)

    def get(self, key: str) -> bytes:
        """Return a note, once it is there; raises RankLostError."""
        self.wait([key])
        return self._notes[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return once all these notes are there; raises RankLostError."""
        while not self.check(keys):
            self._hear()

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all these notes are there."""
        return all(key in self._notes for key in keys)

    def close(self) -> None:
        """Be done on this rank; the node waits for the others. Raises RankLostError."""
        if self._is_node:
            while self._missing:
                self._hear()
        else:
            self._pass_on(Met())
        self._is_over = True

    def _hear(self) -> None:
        if self._is_over:
            raise RankLostError("a rank waits for another where all have met already")
        ready = wait([line.fileno() for line in self._lines], self._deadline.left())
        if not ready:
            raise RankLostError("a rank is silent")
        for line in self._lines:
            if line.fileno() in ready:
                said = line.receive(self._deadline.left())
                if isinstance(said, Met):
                    self._missing -= 1
                    continue
                assert isinstance(said, Note), said
                self._notes[said.key] = said.value
                if self._is_node:
                    self._pass_on(said, but=line)

    def _pass_on(self, content: Note | Met, but: Line | None = None) -> None:
        for line in self._lines:
            if line is not but:
                line.send(content)
