"""The link to a worker that is an actor of Ray, on whichever machine of the cluster it is."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RaySystemError

from agfl_models.errors import ConfigError
from agfl_sim.engines.workers.shared_mark import SharedMark
from agfl_sim.engines.workers.worker import Worker, refusal_of

_START_S = 300.0  # for a worker to have PyTorch loaded, on a busy machine
_DEATH_S, _POLL_S = 60.0, 0.2  # Ray takes a machine for dead after half a minute


class RayWorker:
    """A worker as an actor. It refuses a machine that lacks what the driver's has."""

    def __init__(self, mark: SharedMark, versions: dict[str, str]) -> None:
        torch.set_num_threads(1)  # the other processors are the other workers'
        self._mark, self._versions = mark, versions
        self._lock, self._said = threading.Lock(), list[object]()
        self._worker: Worker | None = None

    def hear(self, content: object) -> list[object]:
        """Take what the driver says; return what the worker said since the last time."""
        if self._worker is None:
            try:
                self._refuse_strange_machine()
            except ConfigError as error:
                return [refusal_of(error)]
            self._worker = Worker(self._say)
        self._worker.hear(content)
        with self._lock:
            said, self._said = self._said, []
        return said

    def _say(self, content: object) -> None:
        with self._lock:
            self._said.append(content)

    def _refuse_strange_machine(self) -> None:
        here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        if (found := versions_here()) != self._versions:
            rule = f"must have {_listed(self._versions)}, as where the run was started, has {_listed(found)}"
            raise ConfigError("AGFL-CONFIG-238", f"--engine ray: machine {here} {rule}")
        if not self._mark.is_seen():
            rule = f"must see the run's folder {self._mark.folder}, on a disk that all machines share, and does not"
            raise ConfigError("AGFL-CONFIG-237", f"--engine ray: machine {here} {rule}")


class RayLink:
    """See `Link`; making one starts the actor.

    num_cpus: processors that it waits for, and takes from others who use the cluster.
    """

    def __init__(self, mark: SharedMark, num_cpus: int) -> None:
        # Ray would start it again without what it was asked so far.
        kind: Any = ray.remote(max_restarts=0, num_cpus=num_cpus, scheduling_strategy="SPREAD")(RayWorker)
        self._actor = kind.remote(mark, versions_here())
        self._asked, self._said = deque[Any](), deque[object]()
        self._has_answered, self._how_it_ended = False, "was ended"
        self._is_ended = threading.Event()

    def send(self, content: object) -> None:
        """As of `Link`."""
        self._asked.append(self._actor.hear.remote(content))

    def receive(self) -> object:
        """As of `Link`."""
        while not self._said:
            self._said.extend(self._next())
        return self._said.popleft()

    def end(self) -> str:
        """As of `Link`."""
        self._is_ended.set()
        with suppress(RaySystemError):  # Ray itself has ended
            ray.kill(self._actor)
        return self._how_it_ended

    def _next(self) -> list[object]:
        """Return what the worker said to the first content to which its answer is open."""
        try:
            found: list[object] = ray.get(self._asked.popleft(), timeout=None if self._has_answered else _START_S)
        except GetTimeoutError:
            rule = f"no processor was free, or none of its processes answered, within {_START_S:g} s"
            raise ConfigError("AGFL-CONFIG-207", f"--engine ray: Ray cannot start a worker: {rule}") from None
        except RayActorError as error:
            if isinstance(error, ActorDiedError) and error.actor_init_failed:
                raise ConfigError("AGFL-CONFIG-236", f"--engine ray: {_missing(str(error))}") from None
            self._how_it_ended = _loss(str(self._death() if isinstance(error, ActorUnavailableError) else error))
            raise EOFError from None
        except RaySystemError as error:
            self._how_it_ended = f"was lost with Ray ({str(error).splitlines()[0]})"
            raise EOFError from None
        self._has_answered = True
        return found

    def _death(self) -> RayActorError | None:
        """Return once the cluster knows that an actor which cannot be reached is gone, or after a minute.

        Another one before that could be placed on the same dying machine, and write the same ledgers.
        """
        until = time.monotonic() + _DEATH_S
        while not self._is_ended.wait(_POLL_S) and (left_s := until - time.monotonic()) > 0:
            try:
                ray.get(self._actor.__ray_ready__.remote(), timeout=left_s)
                with suppress(RaySystemError):
                    ray.kill(self._actor)  # it can be reached again, but may have missed what it was told
            except ActorDiedError as error:
                return error
            except (ActorUnavailableError, GetTimeoutError):
                continue
            except RaySystemError:
                break
        return None


def versions_here() -> dict[str, str]:
    """Return what must be alike on all machines for the same bits; Ray checks its own and Python's."""
    return {name: version(name) for name in ("agfl", "torch", "numpy", "flwr")}


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _missing(text: str) -> str:
    """Return what a machine lacks, of Ray's words on an actor that could not be made: their last line is the error."""
    return f"{_machine(text)} must have agfl installed as here, has not: {text.strip().splitlines()[-1].strip()}"


def _loss(text: str) -> str:
    """Return how an actor was lost, of Ray's many words."""
    reason = re.search(r"because (it.+?)[.\n]", text)
    return f"was lost on {_machine(text)}" + (f" ({reason[1]})" if reason is not None else "")


def _machine(text: str) -> str:
    found = re.search(r"\bip[:=] ?([\w.:]+\w)", text)
    return "a machine" if found is None else f"machine {found[1]}"
