"""What `agfl-server nodes` prints: who is admitted, who is here, when it was last seen, which version it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agfl_server.rounds.attendance import Seen


def print_nodes(console: Console, nodes: Sequence[Seen]) -> None:
    """Print a row a node; of a server that does not run, nobody knows who is here."""
    table = Table("node", "here", "last seen", "version", "does")
    for seen in nodes:
        here = {True: "yes", False: "no", None: "?"}[seen.here]
        cells = (seen.name, here, _time(seen.last_seen), seen.software or "-", seen.does or "-")
        table.add_row(*map(escape, cells))
    console.print(table)
    if all(seen.here is None for seen in nodes):
        console.print("no server runs on this folder, or it has just started", highlight=False)


def nodes_json(nodes: Sequence[Seen]) -> str:
    """Return the same for a machine."""
    return json.dumps([asdict(seen) for seen in nodes])


def _time(stamp: str | None) -> str:
    return "never" if stamp is None else stamp.replace("T", " ").replace("+00:00", " UTC")
