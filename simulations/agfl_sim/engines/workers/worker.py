"""A worker: answers for its owners, one message at a time."""

from __future__ import annotations

import importlib
import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from agfl_client.app import create_client_app
from agfl_models import errors, plugins
from agfl_models.errors import AgflError, ConfigError
from agfl_protocol.flower_settings import prepare_flower
from agfl_sim.engines.grid import answer, deflated, inflated, take_identity
from agfl_sim.engines.opened_owners import NotOpened, OpenedOwners
from agfl_sim.engines.simulated_owners import SimulatedOwner
from agfl_sim.engines.workers.messages import Begin, ClassPath, Clear, Defect, LogLine, Ready, Refusal, Reply, Request
from agfl_sim.engines.workers.repeated_draws import RepeatedDraws


class Worker:
    """A process's only one. say: brings to the driver what the worker says; several threads may call it."""

    def __init__(self, say: Callable[[object], None]) -> None:
        self._say = say
        self._owners: dict[int, SimulatedOwner] = {}
        self._draws: dict[int, RepeatedDraws] = {}
        self._in_exchange = set[int]()
        self._objects: dict[str, bytes] = {}
        prepare_flower()
        logging.getLogger().handlers = [_ToDriver(say)]

    def hear(self, content: object) -> None:
        """Take what the driver says, and say what there is to say to it: to all but Clear that is one answer."""
        if isinstance(content, Begin):
            self._say(self._begun(content))
        elif isinstance(content, Clear):
            self._objects.clear()
            if content.is_over:
                self._in_exchange.clear()
        else:
            assert isinstance(content, Request)
            self._say(self._answer(content))

    def _begun(self, begin: Begin) -> Ready | Refusal:
        try:
            plugins.enable(begin.owners.plugins)
            for path in begin.classes:
                _register(path, begin.engine)
            take_identity()
            self._owners = dict(begin.owners.owners)
            owners = replace(begin.owners, owners=self._owners)
            self._nodes, self._is_secure = OpenedOwners(owners, begin.folder, draws_of=self._draws_of), owners.is_secure
        except AgflError as error:
            return refusal_of(error)
        self._app = create_client_app(lambda context: self._nodes[context.node_id])
        return Ready()

    def _draws_of(self, node: int) -> RepeatedDraws:
        return self._draws.setdefault(node, RepeatedDraws())

    def _answer(self, request: Request) -> Reply | Refusal | Defect:
        if request.owner is not None:
            self._owners[request.node] = request.owner
        if request.secret is not None:
            self._draws_of(request.node).begin(request.secret)
            self._in_exchange.add(request.node)
            self._nodes.hold(self._in_exchange if self._is_secure else ())
        self._objects |= {key: content for key, content in request.objects.items() if content is not None}
        message = inflated(request.object_id, {key: self._objects[key] for key in request.objects})
        try:
            reply = answer(self._app, message, request.message_id)
        except NotOpened as stopped:
            return refusal_of(stopped.reason)
        except Exception:
            return Defect(traceback.format_exc())
        return Reply(*deflated(reply))


class _ToDriver(logging.Handler):
    """Sends log lines to the driver, so that they look as those of one process and no progress bar is torn."""

    def __init__(self, say: Callable[[object], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, with the traceback that may come with it."""
        self._say(LogLine(record.name, record.levelno, self.format(record)))


def refusal_of(error: AgflError) -> Refusal:
    """Return an error as it travels to the driver."""
    kind = type(error).__name__
    return Refusal(kind if hasattr(errors, kind) else AgflError.__name__, error.code, error.sentence)


def _register(path: ClassPath, engine: str) -> None:
    """Make a class known to the part that it is of, as its author did in the driver."""
    module, name = path
    try:
        kind: object = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
    except Exception as error:  # whatever somebody's module raises
        why = f"{type(error).__name__}: {error}"
        line = f"--engine {engine}: {module}.{name}: must be found by a new process, is not: {why}"
        raise ConfigError("AGFL-CONFIG-280", line) from None
    assert isinstance(kind, type)
    for add in plugins.GROUPS.values():
        with suppress(ConfigError):  # of another part
            add(kind)
