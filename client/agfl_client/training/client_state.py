"""What an owner keeps from round to round for methods that need it (`methods.owner_states`); it never leaves.

A state counts only if the server used the update that it follows from, and an owner cannot know that by itself: its
reply may have come too late, or its node may have crashed. So the file holds two states, each under the exchange that
it follows from: the one known to count, and the one that may. The next request lists the exchanges that were used, the
same list for all owners, and so says which of them holds:

    state-RUN_ID-MODEL.safetensors    float32 (d,) each: "12", "13"

An owner of which nothing was used has the state zero. One whose used state is not here (a new machine, an old backup,
a vector that left but of which it never signed the sum) has lost it: the server's sum of states then holds a part that
nobody has, for good. The owner says so in the sum, and the server lets all begin anew with zero.

As many files are kept as a search has candidates, which take turns: those that were written last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from agfl_client.ledger.ledger import Ledger
from agfl_models.errors import ConfigError
from agfl_models.files.durable_files import write_atomically
from agfl_protocol.config.search_config import MAX_CANDIDATES
from agfl_protocol.identity.private_files import check_private
from agfl_protocol.methods.method import State, States
from agfl_protocol.methods.owner_states.owner_state import IS_LOST, OWN, OwnerState, used_in
from agfl_protocol.update import Vector

log = logging.getLogger("agfl.client")


@dataclass(frozen=True)
class Memory:
    """An owner's state `own` (d,) at the beginning of an exchange, and the method that has it keep one.

    arrays: what was broadcast of the method. last: the exchange that the state follows from, None where it is zero;
    is_lost: it is zero in place of that.
    """

    method: OwnerState
    arrays: State = field(repr=False)
    own: Vector = field(repr=False)
    last: int | None
    is_lost: bool

    @property
    def states(self) -> States:
        """What the method is to know of it."""
        return {self.method.name: {OWN: self.own, IS_LOST: np.array([self.is_lost])}}

    def after(self, sent: Vector) -> Vector:
        """Return the state that follows if the update `sent` (d,) is counted."""
        return (self.own + self.method.change(self.arrays, sent)).astype(np.float32, copy=False)


class StateKey(NamedTuple):
    """Of which training a state is: a search trains several models in one run."""

    run_id: str
    model: str


def last_used(arrays: State, ledger: Ledger | None, run_id: str, name: str) -> tuple[int | None, bool]:
    """Return the last exchange whose sum, that was used, had this owner in it, and whether that is sure.

    ledger: of secure sums; without one the names that were broadcast say it.
    """
    if ledger is None:
        used = [exchange for exchange, names in used_in(arrays) if name in names]
        return (used[-1] if used else None), True
    used = [exchange for exchange, _ in used_in(arrays) if ledger.has_left(run_id, exchange)]
    signed = ledger.signed(run_id)
    for exchange in reversed(used):
        if exchange not in signed:  # the vector left, but nobody told whether it was in the sum
            return exchange, False
        if name in signed[exchange]:
            return exchange, True
    return None, True


class ClientStates:
    """The states of one owner, a file a training in the node's folder, with mode 0600.

    Raises:
        IdentityError: a file is open to group or others.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for path in self._paths():
            check_private(path)

    def recall(self, key: StateKey, last: int | None, size: int) -> tuple[Vector, bool]:
        """Return the state (size,) that follows from the exchange `last`, and whether it is lost."""
        if last is None:
            return np.zeros(size, np.float32), False
        found = self._read(key).get(str(last))
        if found is not None and found.dtype == np.float32 and found.shape == (size,) and np.isfinite(found).all():
            return found, False
        log.warning(
            "run %s: the state after exchange %d, which was used, is not here; all owners begin anew", key.run_id, last
        )
        return np.zeros(size, np.float32), True

    def keep(self, key: StateKey, exchange: int, before: Memory, sent: Vector) -> None:
        """Write the state that was known to count and the one that may, durably, before the reply leaves.

        Of others the files that were written longest ago are dropped, or a server could fill the disk with runs.

        Raises:
            ConfigError: the file cannot be written, so the exchange must not be answered.
        """
        states = {str(exchange): before.after(sent)}
        if before.last is not None and not before.is_lost:
            states[str(before.last)] = before.own
        try:
            write_atomically(self._path(key), save(states), mode=0o600)
            others = sorted(set(self._paths()) - {self._path(key)}, key=lambda path: path.stat().st_mtime_ns)
            for path in others[: -(MAX_CANDIDATES - 1)]:
                path.unlink()
        except OSError as error:
            # The path stays out of the line, which also goes to the server.
            raise ConfigError("AGFL-CONFIG-185", f"state: cannot be written on this node: {error.strerror}") from None

    def finish(self, run_id: str) -> None:
        """Drop what other runs have left; the run that is over may yet be made longer."""
        for path in self._paths():
            if f"state-{run_id}-" not in path.name:
                path.unlink(missing_ok=True)

    def _read(self, key: StateKey) -> Mapping[str, Vector]:
        try:
            return load(self._path(key).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, SafetensorError) as error:
            log.error("run %s: the state of this owner cannot be read: %s", key.run_id, error)
            return {}

    def _path(self, key: StateKey) -> Path:
        return self._folder / f"state-{key.run_id}-{key.model}.safetensors"

    def _paths(self) -> list[Path]:
        """Return all files, and what a kill has left half written of one."""
        return sorted(self._folder.glob("*state-*.safetensors"))
