"""`agfl-client approve` and `agfl-client runs`: what an owner sees of the runs that were put to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agfl_client.approval.approval_files import ApprovalFiles, Status
from agfl_client.approval.approvals import decide, earlier_run
from agfl_client.approval.plan_text import describe
from agfl_client.keys import name_in
from agfl_client.policy import Policy
from agfl_models.errors import ConfigError, one_line


def decide_on(folder: Path, run_id: str, policy: Policy, *, refuse: bool, yes: bool) -> None:
    """Show a run's plan, ask, and note the answer.

    Raises:
        ConfigError: no such run was put to this owner, its plan changes meanwhile, or there is nobody to ask.
    """
    files = _files(folder)
    found = files.read(run_id) if "/" not in run_id else None
    if found is None:
        waiting = [name for name, one in files.read_all().items() if one.status is Status.PENDING]
        raise ConfigError(
            "AGFL-CONFIG-049", f"approve: must be a run that was put to you, got {run_id!r}; {_waiting(waiting)}"
        )
    answer = Status.REFUSED if refuse else Status.APPROVED
    try:
        plan = found.read_plan()
        print(describe(plan, earlier_run(files, plan), found.sigma, operator=found.operator, policy=policy))
    except ConfigError as error:
        if not refuse:
            raise
        print(f"run {run_id}: its plan cannot be read here: {error}")  # nobody needs a plug-in to say no to it
    if found.status is answer:
        print(f"run {run_id} is {answer.value} already")
        return
    if not yes and not _is_confirmed(f"{'refuse' if refuse else 'approve'} run {run_id}?"):
        print("nothing is changed")
        return
    decide(files, run_id, found.plan, answer)
    print(f"run {run_id} is {answer.value}")


def print_runs(folder: Path, *, as_json: bool) -> None:
    """Print one line a run, the one that changed last at the end."""
    rows = []
    for run_id, one in _files(folder).read_all().items():
        task, members = _task_and_members(one.plan)
        rows.append({"run": run_id, "status": one.status.value, "by": one.by, "task": task, "members": members})
        rows[-1]["since"] = one.time
    if as_json:
        print(json.dumps(rows))
        return
    table = Table()
    for column in ("run", "status", "by", "task", "members", "since (UTC)"):
        table.add_column(column, overflow="fold")
    for row in rows:
        *cells, since = (str(value or "") for value in row.values())
        table.add_row(*cells, since[:16].replace("T", " "))
    if rows:
        Console().print(table)
    else:
        print("no run was put to you yet")


def _task_and_members(plan: str) -> tuple[str, int | None]:
    """Return what a plan's text says, also where it has parts that are not known here."""
    try:
        content = json.loads(plan)
        return one_line(str(content["config"]["task"]["type"])), len(content["members"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return "unknown", None


def _files(folder: Path) -> ApprovalFiles:
    name_in(folder)  # else a mistyped folder would be filled
    return ApprovalFiles(folder)


def _waiting(names: list[str]) -> str:
    return f"waiting: {', '.join(names)}" if names else "none is waiting"


def _is_confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("AGFL-CONFIG-050", "approve: needs --yes where there is no terminal to ask at")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
