"""Shows a person what a run took because its file left it open, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from agfl_protocol.config.defaults import TakenDefault


def print_defaults(console: Console, taken: Sequence[TakenDefault]) -> None:
    """Print a line for each default; nothing where everything was stated."""
    if not taken:
        return
    table = Table(title="left open in the configuration")
    table.add_column("setting", no_wrap=True)
    table.add_column("taken")
    table.add_column("because")
    for default in taken:
        table.add_row(default.setting, shown(default.value), default.reason)
    console.print(table, highlight=False)


def shown(value: Any) -> str:
    """Write plain data as it could stand in the file."""
    if not isinstance(value, Mapping):
        return str(value)
    return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
