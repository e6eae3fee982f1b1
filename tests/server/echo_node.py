"""A data owner's node as a process of its own, with an app that sends back what it got. Arguments: SERVER CA KEYS."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from agfl_client import keys
from agfl_client.transport.supernode import run_node
from agfl_models.console import run_app
from agfl_models.errors import ConfigError, DataError
from agfl_protocol.flower_settings import prepare_flower


def make_app(finished: threading.Event) -> ClientApp:
    """Return an app with one function for each thing that the tests want a node to do."""
    app = ClientApp()

    @app.train()
    def echo(message: Message, context: Context) -> Message:
        count = int(str(context.state.config_records.get("count", ConfigRecord({"n": 0}))["n"])) + 1
        context.state["count"] = ConfigRecord({"n": count})
        message.content["node"] = ConfigRecord({"pid": os.getpid(), "count": count})
        return Message(message.content, reply_to=message)

    @app.train("slowly")
    def sleep(message: Message, context: Context) -> Message:
        time.sleep(60)
        return Message(message.content, reply_to=message)

    @app.query("refuse")
    def refuse(message: Message, context: Context) -> Message:
        raise ConfigError("AGFL-CONFIG-000", "field: must be small, got 9")

    @app.query("leak")
    def leak(message: Message, context: Context) -> Message:
        raise DataError("AGFL-DATA-000", "data: must be text, got 'a private sentence'")

    @app.query("crash")
    def crash(message: Message, context: Context) -> Message:
        raise ValueError("a private sentence")

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        finished.set()
        return Message(message.content, reply_to=message)

    return app


def main() -> None:
    """Serve until finished."""
    server, ca, folder = sys.argv[1:]
    finished = threading.Event()
    prepare_flower()
    run_node(
        server,
        Path(ca),
        keys.load(Path(folder)).transport,
        make_app(finished),
        stop=threading.Event(),
        finished=finished.is_set,
        max_wait_s=30,
    )


if __name__ == "__main__":
    run_app(main)
