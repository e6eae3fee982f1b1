"""A worker process: answers for its owners, one message at a time, until its driver is gone."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from agfl_client.app import create_client_app
from agfl_models import errors, plugins
from agfl_models.errors import AgflError, ConfigError
from agfl_protocol.flower_settings import prepare_flower
from agfl_sim.engines.grid import answer, deflated, inflated, take_identity
from agfl_sim.engines.processes.link import (
    Begin,
    ClassPath,
    Clear,
    Defect,
    Line,
    Ready,
    Refusal,
    Reply,
    Request,
    ToDriver,
)
from agfl_sim.engines.processes.repeated_draws import RepeatedDraws


def main() -> None:
    """Entry point; the argument is the descriptor of the line to the driver, stdin ends with the driver."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the driver says when it is over
    threading.Thread(target=_leave_with_driver, daemon=True).start()
    line = Line(Connection(int(sys.argv[1])))
    with suppress(EOFError, OSError):
        _work(line)


def _leave_with_driver() -> None:
    """End this process in whatever it does, once nobody holds the other end of stdin."""
    while os.read(0, 1):
        pass
    os._exit(0)


def _work(line: Line) -> None:
    prepare_flower()
    logging.getLogger().handlers = [ToDriver(line)]
    begin = line.receive()
    assert isinstance(begin, Begin)
    try:
        plugins.enable(begin.owners.plugins)
        for path in begin.classes:
            _register(path)
        take_identity()
        draws = {number: RepeatedDraws() for number in begin.owners.owners}
        nodes = begin.owners.nodes(begin.folder, draws)
    except AgflError as error:
        kind = type(error).__name__
        line.send(Refusal(kind if hasattr(errors, kind) else AgflError.__name__, error.code, error.sentence))
        return
    apps = {number: create_client_app(node) for number, node in nodes.items()}
    line.send(Ready())
    objects: dict[str, bytes] = {}
    while True:
        request = line.receive()
        if isinstance(request, Clear):
            objects.clear()
            continue
        assert isinstance(request, Request)
        if request.secret is not None:
            draws[request.node].begin(request.secret)
        objects |= {key: content for key, content in request.objects.items() if content is not None}
        message = inflated(request.object_id, {key: objects[key] for key in request.objects})
        try:
            reply = answer(apps[request.node], message, request.message_id)
        except Exception:
            line.send(Defect(traceback.format_exc()))
        else:
            line.send(Reply(*deflated(reply)))


def _register(path: ClassPath) -> None:
    """Make a class known to the part that it is of, as its author did in the driver."""
    module, name = path
    try:
        kind: object = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
    except Exception as error:  # whatever somebody's module raises
        why = f"{type(error).__name__}: {error}"
        line = f"--engine processes: {module}.{name}: must be found by a new process, is not: {why}"
        raise ConfigError("AGFL-CONFIG-280", line) from None
    assert isinstance(kind, type)
    for add in plugins.GROUPS.values():
        with suppress(ConfigError):  # of another part
            add(kind)
