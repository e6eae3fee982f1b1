"""`agfl-client approve`, `runs` and `ledger` as an owner uses them, beside a node or without one."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_client import keys
from agfl_client.approval.approvals import Approvals
from agfl_client.cli import app
from agfl_client.ledger.ledger import Ledger
from agfl_client.ledger.ledger_file import LEDGER_FILE
from agfl_client.ledger.ledger_state import Asked
from agfl_client.policy import Policy
from agfl_models.errors import AgflError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.context import ExchangeId

NAMES = ("alice", "bob", "carol", "dave", "erin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Alice's keys."""
    keys.generate("alice", tmp_path / "alice")
    return tmp_path / "alice"


@pytest.fixture
def plan(run_config: Callable[..., RunConfig]) -> Plan:
    """A plan of five owners."""
    return Plan.of(run_config("aggregation.type=secure").client_plan, "run-1", NAMES, 3)


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        """It is one."""
        return True


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what a command prints; with `typed` at a terminal."""

    def run_in(*arguments: str, typed: str | None = None) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run_in


def test_a_run_is_looked_at_and_approved_while_the_node_runs(folder: Path, plan: Plan, run: Run) -> None:
    with keys.hold(folder):
        approvals = Approvals(folder, Policy(), "9f" * 32)
        approvals.propose(plan)
        shown = run("approve", "run-1", "--keys", str(folder), "--yes")
        assert f"run run-1, plan {plan.hash}" in shown
        assert f"operator: CA certificate {'9f' * 32}" in shown
        assert "members: 5: alice, bob, carol, dave, erin" in shown
        assert shown.endswith("\nrun run-1 is approved\n")
        assert approvals.approved("run-1") == plan
        assert run("approve", "run-1", "--keys", str(folder)).endswith("run run-1 is approved already\n")
        assert run("approve", "run-1", "--keys", str(folder), "--refuse", "--yes").endswith(" is refused\n")
        assert approvals.approved("run-1") is None


@pytest.mark.parametrize(("typed", "is_approved"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False)])
def test_only_yes_is_yes(typed: str, is_approved: bool, folder: Path, plan: Plan, run: Run) -> None:
    approvals = Approvals(folder, Policy(), "9f" * 32)
    approvals.propose(plan)
    shown = run("approve", "run-1", "--keys", str(folder), typed=typed)
    assert "approve run run-1? [y/N] " in shown
    assert shown.endswith("run run-1 is approved\n" if is_approved else "nothing is changed\n")
    assert (approvals.approved("run-1") is not None) is is_approved


def test_without_a_terminal_there_is_no_answer(folder: Path, plan: Plan, run: Run) -> None:
    approvals = Approvals(folder, Policy(), "9f" * 32)
    approvals.propose(plan)
    with pytest.raises(AgflError, match=r"^approve: .*AGFL-CONFIG-050"):
        run("approve", "run-1", "--keys", str(folder))
    assert approvals.approved("run-1") is None


def test_a_run_whose_plugin_is_not_there_is_listed_and_refused_but_not_approved(
    folder: Path, plan: Plan, run: Run
) -> None:
    """Whoever uninstalls it since it is not to be trusted takes back the approval."""
    approvals = Approvals(folder, Policy(runs="all"), "9f" * 32)
    approvals.propose(plan)
    file = folder / "approvals" / "run-1.json"
    content = json.loads(file.read_text())
    pinned = json.loads(content["plan"])
    pinned["config"]["plugins"] = [{"name": "own-plugin", "version": "1.0", "files": "0" * 64}]
    pinned["config"]["task"]["type"] = "own_task"
    file.write_text(json.dumps(content | {"plan": json.dumps(pinned)}))
    (row,) = json.loads(run("runs", "--keys", str(folder), "--json"))
    assert (row["status"], row["task"], row["members"]) == ("approved", "own_task", 5)
    with pytest.raises(AgflError, match=r"own-plugin 1.0 .*AGFL-CONFIG-221"):
        run("approve", "run-1", "--keys", str(folder), "--yes")
    shown = run("approve", "run-1", "--keys", str(folder), "--refuse", "--yes")
    assert "its plan cannot be read here" in shown
    assert json.loads(file.read_text())["status"] == "refused"


def test_an_unknown_run_lists_those_that_wait(folder: Path, plan: Plan, run: Run) -> None:
    with pytest.raises(AgflError, match=r"^approve: .*got 'x'; none is waiting.*AGFL-CONFIG-049"):
        run("approve", "x", "--keys", str(folder), "--yes")
    Approvals(folder, Policy(), "9f" * 32).propose(plan)
    for name in ("x", "../approvals/run-1"):
        with pytest.raises(AgflError, match=rf"got '{name}'; waiting: run-1 \[AGFL-CONFIG-049\]$"):
            run("approve", name, "--keys", str(folder), "--yes")


def test_runs_are_listed(folder: Path, plan: Plan, run: Run) -> None:
    assert run("runs", "--keys", str(folder)) == "no run was put to you yet\n"
    Approvals(folder, Policy(), "9f" * 32).propose(plan)
    listed = run("runs", "--keys", str(folder))
    assert all(word in listed for word in ("run-1", "pending", "language_modeling"))
    (row,) = json.loads(run("runs", "--keys", str(folder), "--json"))
    assert (row["run"], row["status"], row["by"], row["members"]) == ("run-1", "pending", None, len(plan.members))


def test_the_ledger_shows_what_left_and_what_that_gives_away(folder: Path, plan: Plan, run: Run) -> None:
    assert run("ledger", "--keys", str(folder)) == "nothing was asked of this node yet\n"
    assert not (folder / LEDGER_FILE).exists(), "looking writes nothing"
    approvals = Approvals(folder, Policy(runs="all"), "9f" * 32)
    approvals.propose(plan)
    approvals.note_sigma("run-1", 0.5)
    ledger = Ledger(folder, "alice")
    ledger.approve("run-1", plan.hash)
    for number in (1, 2, 4):
        exchange = ExchangeId("run-1", number, number)
        ledger.announce(
            exchange,
            Asked(Kind.SAMPLED, train=True, evaluate=number == 1, count=False, cohort=5, examples=96),
            Policy(),
        )
        ledger.leave(exchange, NAMES)
        ledger.sign(exchange, NAMES[:4] if number == 2 else NAMES)
        ledger.open(exchange)
    shown = run("ledger", "--keys", str(folder), "--run", "run-1")
    assert f"plan {plan.hash} approved" in shown
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.split("\n") if "│" in line]
    assert ["1", "1", "train+evaluate", "sampled", "96", "5", "for 5", "all", "yes"] in cells
    assert ["2", "2", "train", "sampled", "96", "5", "for 5", "without erin", "yes"] in cells
    assert ["alice", "3", "1", "2", "0.76"] in cells
    assert ["erin", "2", "1", "1", ""] in cells
    (found,) = json.loads(run("ledger", "--keys", str(folder), "--json"))
    assert (found["run"], found["approved"][0]["plan"]) == ("run-1", plan.hash)
    assert [list(row.values()) for row in found["exchanges"] + found["pairs"]] == [
        row for row in cells if row[0] not in ("round", "owner") and len(row) > 1
    ]
    with pytest.raises(AgflError, match=r"^--run: .*got 'x' \(known: run-1\).*AGFL-CONFIG-066"):
        run("ledger", "--keys", str(folder), "--run", "x")
    verified = run("ledger", "--keys", str(folder), "--verify")
    assert verified.startswith("ledger.jsonl: 13 lines, each follows from the one before; the last hash is ")
    path = folder / LEDGER_FILE
    path.write_text(path.read_text().replace('"lost":["erin"]', '"lost":[]'))
    line = rf"^{re.escape(str(path))}:8: .*AGFL-CONFIG-063"
    with pytest.raises(AgflError, match=line):
        run("ledger", "--keys", str(folder), "--verify")


def test_a_folder_without_keys_is_not_filled(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    for command in (["runs"], ["ledger"], ["approve", "x"]):
        with pytest.raises(AgflError, match=r"AGFL-IDENTITY-032"):
            run(*command, "--keys", str(tmp_path / "empty"))
    assert list((tmp_path / "empty").iterdir()) == []


def test_end_of_input_changes_nothing(run: Run, folder: Path, plan: Plan) -> None:
    Approvals(folder, Policy(), "ca").propose(plan)
    assert run("approve", "run-1", "--keys", str(folder), typed="").endswith("nothing is changed\n")
