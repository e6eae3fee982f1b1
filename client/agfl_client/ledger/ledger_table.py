"""`agfl-client ledger`: what a node was asked for and what left, as tables; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agfl_client.approval.approval_files import ApprovalFiles
from agfl_client.approval.plan_text import honest_others
from agfl_client.keys import name_in
from agfl_client.ledger.ledger_file import FIRST_HASH, LEDGER_FILE, read_entries
from agfl_client.ledger.ledger_state import ANNOUNCED, APPROVED, LEFT, OPENED, SIGNED, History
from agfl_client.policy import Policy
from agfl_client.training.own_error import own_error
from agfl_models.errors import ConfigError

_COLUMNS = ("round", "exchange", "asked", "kind", "examples", "owners", "left", "signed", "opened")
_PAIR_COLUMNS = ("owner", "with", "without", "pairs", "own error")


def print_verified(folder: Path) -> None:
    """Check the whole chain and print how long it is and its last hash, to compare with one noted before."""
    entries = _entries(folder)
    last = entries[-1]["hash"] if entries else FIRST_HASH
    print(f"{LEDGER_FILE}: {len(entries)} lines, each follows from the one before; the last hash is {last}")


def print_ledger(folder: Path, run_id: str | None, *, as_json: bool) -> None:
    """Print a line for each exchange of one run or of all, and what their sums can give away.

    Raises:
        ConfigError: the ledger is damaged, or knows no such run.
    """
    entries, own_name = _entries(folder), name_in(folder)
    history = History(entries, own_name)
    if run_id is not None and run_id not in history.runs():
        known = ", ".join(history.runs()) or "none"
        raise ConfigError("AGFL-CONFIG-066", f"--run: must be a run in this ledger, got {run_id!r} (known: {known})")
    runs = history.runs() if run_id is None else (run_id,)
    if as_json:
        print(json.dumps([_run(run, entries, history, folder) for run in runs]))
        return
    if not entries:
        print("nothing was asked of this node yet")
    for run in runs:
        _print_run(run, [entry for entry in entries if entry["run"] == run], history, folder)


def _run(run_id: str, entries: Sequence[Mapping[str, Any]], history: History, folder: Path) -> dict[str, Any]:
    """Return the same for a machine, in words where the table has words."""
    own = [entry for entry in entries if entry["run"] == run_id]
    plans = [{"plan": entry["plan"], "time": entry["time"]} for entry in own if entry["event"] == APPROVED]
    exchanges = [dict(zip(_COLUMNS, row, strict=True)) for row in _rows(own)]
    pairs = [dict(zip(_PAIR_COLUMNS, row, strict=True)) for row in _pairs(run_id, history, folder)]
    return {"run": run_id, "approved": plans, "exchanges": exchanges, "pairs": pairs}


def _print_run(run_id: str, entries: Sequence[Mapping[str, Any]], history: History, folder: Path) -> None:
    print(f"run {run_id}")
    for entry in entries:
        if entry["event"] == APPROVED:
            print(f"  plan {entry['plan']} approved, {entry['time']}")
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="right", overflow="fold")
    for row in _rows(entries):
        table.add_row(*row)
    if table.row_count:
        Console().print(table)
        _print_pairs(run_id, history, folder)


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a line for each time that an exchange was answered."""
    rows: list[list[str]] = []
    for entry in entries:
        event = entry["event"]
        if event == ANNOUNCED:
            examples = "all" if entry["examples"] is None else str(entry["examples"])
            asked = "+".join(entry["asked"])
            rows.append(
                [str(entry["round"]), str(entry["exchange"]), asked, entry["kind"], examples, str(entry["cohort"])]
                + [""] * 3
            )
        elif event == LEFT:
            rows[-1][6] = f"for {len(entry['names'])}"
        elif event == SIGNED:
            rows[-1][7] = f"without {', '.join(entry['lost'])}" if entry["lost"] else "all"
        elif event == OPENED:
            rows[-1][8] = "yes"
    return rows


def _print_pairs(run_id: str, history: History, folder: Path) -> None:
    table = Table(title="sampled sums with and without each owner, as far as this node can know")
    for column in _PAIR_COLUMNS:
        table.add_column(column, justify="right", overflow="fold")
    for row in _pairs(run_id, history, folder):
        table.add_row(*row)
    Console().print(table)


def _pairs(run_id: str, history: History, folder: Path) -> list[tuple[str, ...]]:
    """Return a line for each owner; the own error is known for this node alone."""
    found = ApprovalFiles(folder).read(run_id)
    names = sorted({history.own_name, *(name for names in history.signed(run_id).values() for name in names)})
    rows: list[tuple[str, ...]] = []
    plan = None if found is None else found.read_plan()
    for name in names:
        pairs = history.pairs(run_id, name, 1 if plan is None else plan.turns)
        error = ""
        if plan is not None and found is not None and found.sigma is not None and name == history.own_name:
            error = f"{own_error(pairs.k, found.sigma, honest_others(plan, Policy())):.2f}"
        rows.append((name, str(pairs.with_it), str(pairs.without), f"{pairs.k:.0f}", error))
    return rows


def _entries(folder: Path) -> list[dict[str, Any]]:
    name_in(folder)
    path = folder / LEDGER_FILE
    return read_entries(path) if path.exists() else []
