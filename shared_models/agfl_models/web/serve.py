"""Serving a model until Ctrl-C."""

from __future__ import annotations

import ipaddress
import os

import typer

from agfl_models.console import EXIT_INTERRUPTED
from agfl_models.inference import User
from agfl_models.web.app import create_app
from agfl_models.web.asgi_server import AsgiServer, without_brackets
from agfl_models.web.facts import ModelFacts

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})


def serve_model(user: User, facts: ModelFacts, host: str, port: int, *, exits: bool = True) -> None:
    """Serve a model on `host` and `port` until Ctrl-C or SIGTERM.

    exits: the process ends with it, as a command's does and a notebook's must not.

    Raises:
        TransportError: the address cannot be listened on.
    """
    host = without_brackets(host)
    name, is_local = f"[{host}]" if ":" in host else host, is_loopback(host)
    app = create_app(user, facts, LOOPBACK_NAMES | {name} if is_local else None)
    with AsgiServer(app, host, port) as server:
        if not is_local:
            line = f"whoever reaches {host} port {server.port} can use this model: no password, no encryption"
            typer.secho(line, fg="red", bold=True, err=True)
        typer.echo(f"the model answers at http://{name}:{server.port}; stop with Ctrl-C", err=True)
        try:
            server.wait()
        except KeyboardInterrupt:
            typer.echo("stopped by a signal", err=True)
            if not exits:
                return
            # A model that is writing goes on to its end, and Python's own way out would wait for it.
            os._exit(EXIT_INTERRUPTED)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
