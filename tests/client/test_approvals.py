"""Nothing runs that its owner has not approved: by its policy, or by a person who saw what has changed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agfl_client.approval import approval_files
from agfl_client.approval.approval_files import ApprovalFiles, Status
from agfl_client.approval.approvals import MAX_PENDING, Approvals, decide, earlier_run
from agfl_client.policy import Policy, PolicyViolation
from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.plans.plan import Plan, plan_from_json

MakeConfig = Callable[..., RunConfig]
NAMES = ["a", "b", "c", "d", "e"]
OPERATOR, OTHER = "9f" * 32, "00" * 32


@pytest.fixture
def make_plan(run_config: MakeConfig) -> Callable[..., Plan]:
    """Return a plan of the tiny run with overrides."""

    def make(*overrides: str, run_id: str = "run", members: list[str] = NAMES) -> Plan:
        return Plan.of(run_config("aggregation.type=secure", *overrides).client_plan, run_id, members, 3)

    return make


MakePlan = Callable[..., Plan]


def open_as(folder: Path, runs: Any = "ask", operator: str = OPERATOR) -> Approvals:
    return Approvals(folder, Policy(runs=runs), operator)


def answer(folder: Path, plan: Plan, status: Status) -> None:
    """Decide as a person does, in another process."""
    decide(ApprovalFiles(folder), plan.run_id, plan.to_json(), status)


def test_a_person_is_asked_and_the_answer_is_found_at_once(tmp_path: Path, make_plan: MakePlan) -> None:
    approvals, plan = open_as(tmp_path), make_plan()
    assert approvals.approved("run") is None
    assert approvals.propose(plan) is Status.PENDING
    assert approvals.propose(plan) is Status.PENDING
    assert approvals.approved("run") is None
    answer(tmp_path, plan, Status.APPROVED)
    assert approvals.approved("run") == plan
    assert approvals.propose(plan) is Status.APPROVED
    answer(tmp_path, plan, Status.REFUSED)
    assert approvals.approved("run") is None
    assert approvals.propose(plan) is Status.REFUSED
    assert open_as(tmp_path, "all").propose(plan) is Status.REFUSED, "a person's word is last"
    assert open_as(tmp_path).approved("other") is None


def test_an_answer_right_behind_a_write_of_the_node_is_seen(
    tmp_path: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system has no locks: what the node wrote is known to it by the file, not by its name."""
    path, other, replace = tmp_path / "approvals" / "run.json", tmp_path / "other", os.replace

    def and_refuse(source: Path, target: Path) -> None:
        replace(source, target)
        if target == path:
            other.write_text(path.read_text().replace('"approved"', '"refused"'))
            other.chmod(0o600)
            replace(other, path)

    monkeypatch.setattr(os, "replace", and_refuse)
    approvals = open_as(tmp_path, "all")
    assert approvals.propose(make_plan()) is Status.APPROVED
    assert approvals.approved("run") is None


def test_files_are_the_owners_only(tmp_path: Path, make_plan: MakePlan) -> None:
    approvals = open_as(tmp_path, "all")
    approvals.propose(make_plan())
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes.pop("approvals") == 0o700
    assert modes.pop("run.json") == 0o600
    assert modes.pop("splits.json") == 0o600
    content = json.loads((tmp_path / "approvals" / "run.json").read_text())
    assert plan_from_json(content["plan"]) == make_plan()
    assert (content["status"], content["by"], content["operator"]) == ("approved", "policy", OPERATOR)


@pytest.mark.parametrize(
    "change",
    [("training.batch_size=5",), ("num_rounds=4",), ("aggregation.clip_l2=1",), ("evaluation.every=1",)],
)
@pytest.mark.parametrize("runs", ["ask", "same_operator_and_task"])
def test_a_changed_plan_of_a_run_waits_again_and_says_what_has_changed(
    runs: str, change: tuple[str, ...], tmp_path: Path, make_plan: MakePlan, caplog: pytest.LogCaptureFixture
) -> None:
    approvals, plan, changed = open_as(tmp_path, runs), make_plan(), make_plan(*change)
    approvals.propose(plan)
    answer(tmp_path, plan, Status.APPROVED)
    with caplog.at_level(logging.WARNING, "agfl.client"):
        assert approvals.propose(changed) is Status.PENDING
        approvals.announce()
    assert approvals.approved("run") is None
    assert [record.message for record in caplog.records if "has changed" in record.message] == [
        f"run run has changed: {change[0].split('=')[0]}: {caplog.records[-1].message.split(': ', 2)[2]}"
    ]
    assert earlier_run(ApprovalFiles(tmp_path), changed) == plan
    answer(tmp_path, changed, Status.APPROVED)
    assert approvals.approved("run") == changed


def test_an_answer_is_to_the_plan_that_was_shown(tmp_path: Path, make_plan: MakePlan) -> None:
    approvals, plan, changed = open_as(tmp_path), make_plan(), make_plan("aggregation.clip_l2=1")
    approvals.propose(plan)
    approvals.propose(changed)
    with pytest.raises(ConfigError, match=r"^run run: .*AGFL-CONFIG-059"):
        answer(tmp_path, plan, Status.APPROVED)
    assert approvals.approved("run") is None
    with pytest.raises(ConfigError, match=r"^run other: its plan has changed meanwhile"):
        answer(tmp_path, make_plan(run_id="other"), Status.APPROVED)


@pytest.mark.parametrize(
    ("overrides", "members", "operator", "status"),
    [
        ((), NAMES, OPERATOR, Status.APPROVED),
        (("training.batch_size=5", "num_rounds=9"), NAMES, OPERATOR, Status.APPROVED),
        ((), NAMES[:4], OPERATOR, Status.PENDING),
        ((), NAMES, OTHER, Status.PENDING),
    ],
)
def test_the_policy_approves_what_is_like_an_approved_run(
    overrides: tuple[str, ...],
    members: list[str],
    operator: str,
    status: Status,
    tmp_path: Path,
    make_plan: MakePlan,
) -> None:
    first, second = make_plan(), make_plan(*overrides, run_id="next", members=members)
    approvals = open_as(tmp_path, "same_operator_and_task", operator)
    assert approvals.propose(second) is Status.PENDING, "there is no run before it"
    assert open_as(tmp_path, "same_operator_and_task").propose(first) is Status.PENDING
    assert approvals.propose(second) is Status.PENDING, "nor is one that waits"
    answer(tmp_path, first, Status.APPROVED)
    assert open_as(tmp_path, "ask", operator).propose(second) is Status.PENDING
    assert approvals.propose(second) is status
    assert (approvals.approved("next") is not None) is (status is Status.APPROVED)


@pytest.mark.parametrize("runs", ["ask", "same_operator_and_task"])
def test_a_new_roster_is_a_new_approval(runs: str, tmp_path: Path, run_config: MakeConfig) -> None:
    config = run_config("aggregation.type=secure")
    first, second = (Plan.of(config.client_plan, "run", NAMES, 3, roster=bytes([key]) * 32) for key in (1, 2))
    approvals = open_as(tmp_path, runs)
    approvals.propose(first)
    answer(tmp_path, first, Status.APPROVED)
    assert approvals.propose(first) is Status.APPROVED
    assert approvals.propose(second) is Status.PENDING
    assert approvals.approved("run") is None
    other = Plan.of(config.client_plan, "next", NAMES, 3, roster=bytes([2]) * 32)
    assert approvals.propose(other) is Status.PENDING


def test_another_task_is_not_like_it(tmp_path: Path, make_plan: MakePlan) -> None:
    layers = "encoder: {layers: [{type: rnn}]}, layers: [{type: attention, cross: true}]"
    model = f"{{family: encoder_decoder, vocab_size: 259, dim: 16, {layers}}}"
    other = make_plan("task={type: translation}", f"model={model}", run_id="next")
    approvals = open_as(tmp_path, "same_operator_and_task")
    approvals.propose(make_plan())
    answer(tmp_path, make_plan(), Status.APPROVED)
    assert approvals.propose(other) is Status.PENDING


def test_an_approval_is_for_one_operator(tmp_path: Path, make_plan: MakePlan) -> None:
    open_as(tmp_path, "all").propose(make_plan())
    assert open_as(tmp_path, "all", OTHER).approved("run") is None
    assert open_as(tmp_path, "ask", OTHER).propose(make_plan()) is Status.PENDING
    assert open_as(tmp_path).approved("run") is None, "the same run under two operators is neither's"


@pytest.mark.parametrize("runs", ["ask", "same_operator_and_task", "all"])
def test_how_much_is_held_out_is_fixed_for_good(runs: str, tmp_path: Path, make_plan: MakePlan) -> None:
    """Two values would part documents by their digests, whoever is asked and however many runs lie between."""
    approvals, plan = open_as(tmp_path, runs), make_plan()
    other = make_plan("task.validation_fraction=0.2", run_id="next")
    if approvals.propose(plan) is Status.PENDING:
        answer(tmp_path, plan, Status.APPROVED)
    (tmp_path / "approvals" / "run.json").unlink()
    line = r"^task\.validation_fraction: .* task language_modeling, got 0\.2.*AGFL-POLICY-001"
    with pytest.raises(PolicyViolation, match=line):
        open_as(tmp_path, runs).propose(other)
    assert list((tmp_path / "approvals").iterdir()) == []


def test_what_waited_while_another_share_was_approved_cannot_be_approved(tmp_path: Path, make_plan: MakePlan) -> None:
    approvals = open_as(tmp_path)
    first, second = make_plan(), make_plan("task.validation_fraction=0.2", run_id="next")
    approvals.propose(first)
    approvals.propose(second)
    answer(tmp_path, first, Status.APPROVED)
    with pytest.raises(PolicyViolation, match=r"^task\.validation_fraction: .*AGFL-POLICY-001"):
        answer(tmp_path, second, Status.APPROVED)
    answer(tmp_path, second, Status.REFUSED)


def test_a_server_cannot_crowd_out_what_was_approved(tmp_path: Path, make_plan: MakePlan) -> None:
    approvals, plan = open_as(tmp_path), make_plan()
    approvals.propose(plan)
    answer(tmp_path, plan, Status.APPROVED)
    for i in range(MAX_PENDING + 5):
        assert approvals.propose(make_plan(run_id=f"r{i:02}")) is Status.PENDING
    assert sorted(path.stem for path in (tmp_path / "approvals").iterdir()) == [
        *(f"r{i:02}" for i in range(5, MAX_PENDING + 5)),
        "run",
    ]
    assert approvals.approved("run") == plan


@pytest.mark.parametrize(("runs", "after"), [("ask", Status.PENDING), ("all", Status.APPROVED)])
def test_draws_that_hardly_differ_ask_again(runs: str, after: Status, tmp_path: Path, make_plan: MakePlan) -> None:
    approvals, plan = open_as(tmp_path, runs), make_plan()
    if approvals.propose(plan) is Status.PENDING:
        answer(tmp_path, plan, Status.APPROVED)
    assert approvals.note_sigma("run", 0.5) is Status.APPROVED
    assert approvals.note_sigma("run", 0.05) is after
    assert (approvals.approved("run") is not None) is (after is Status.APPROVED)
    assert approvals.sigma("run") == 0.05
    answer(tmp_path, plan, Status.APPROVED)
    assert approvals.note_sigma("run", 0.04) is Status.APPROVED, "a person has seen it"
    with pytest.raises(ConfigError, match=r"^run other: .*AGFL-CONFIG-058"):
        approvals.note_sigma("other", 0.5)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', "[" * 100_000, "\xff", '{"status": "approved"}'])
def test_a_damaged_file_approves_nothing_and_no_path_is_told(content: str, tmp_path: Path, make_plan: MakePlan) -> None:
    approvals = open_as(tmp_path, "all")
    approvals.propose(make_plan())
    (tmp_path / "approvals" / "run.json").write_text(content, "latin-1")
    for ask in (lambda: approvals.approved("run"), lambda: approvals.propose(make_plan())):
        with pytest.raises(ConfigError, match=r"^approvals/run\.json: ") as caught:
            ask()
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_too_long_is_not_parsed(
    tmp_path: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_as(tmp_path, "all").propose(make_plan())
    monkeypatch.setattr(approval_files, "_MAX_FILE_BYTES", 100)
    with pytest.raises(ConfigError, match=r"^approvals/run\.json: .*AGFL-CONFIG-053"):
        open_as(tmp_path, "all").approved("run")


@pytest.mark.parametrize("name", ["approvals/run.json", "splits.json"])
def test_a_file_open_to_others_is_refused(name: str, tmp_path: Path, make_plan: MakePlan) -> None:
    open_as(tmp_path, "all").propose(make_plan())
    (tmp_path / name).chmod(0o644)
    with pytest.raises(ConfigError, match=rf"^{name}: .*AGFL-CONFIG-056"):
        open_as(tmp_path, "all").propose(make_plan("training.batch_size=7"))


def test_a_copied_approval_is_none_of_the_other_run(tmp_path: Path, make_plan: MakePlan) -> None:
    approvals = open_as(tmp_path, "all")
    approvals.propose(make_plan())
    folder = tmp_path / "approvals"
    (folder / "other.json").write_bytes((folder / "run.json").read_bytes())
    (folder / "other.json").chmod(0o600)
    assert approvals.approved("other") is None


def _propose(folder: Path, texts: list[str]) -> None:
    for text in texts:
        open_as(folder).propose(plan_from_json(text))


def test_node_and_command_may_write_at_once(tmp_path: Path, make_plan: MakePlan) -> None:
    """Whatever order they come in, no file is torn and each plan that was answered is as answered."""
    plans = [make_plan(run_id=f"r{i}") for i in range(8)]
    open_as(tmp_path)
    texts = [plan.to_json() for plan in plans]
    context = multiprocessing.get_context("fork")
    nodes = [context.Process(target=_propose, args=(tmp_path, texts * 3)) for _ in range(2)]
    for node in nodes:
        node.start()
    files, waiting = ApprovalFiles(tmp_path), list(plans)
    while waiting:
        if files.read(waiting[-1].run_id) is not None:
            plan = waiting.pop()
            decide(files, plan.run_id, plan.to_json(), Status.APPROVED)
    for node in nodes:
        node.join(30)
        assert node.exitcode == 0
    assert all(open_as(tmp_path).approved(plan.run_id) == plan for plan in plans)


def test_a_plan_that_another_version_wrote_stops_no_later_run(tmp_path: Path, make_plan: MakePlan) -> None:
    """It is none that went before: nobody is asked less for it, and what has changed since is not known."""
    files = ApprovalFiles(tmp_path)
    open_as(tmp_path, "all").propose(make_plan(run_id="old"))
    known = files.read("old")
    assert known is not None
    files.write("old", known.changed(plan='{"config":{},"run_id":"old"}'))
    plan = make_plan()
    assert open_as(tmp_path, "same_operator_and_task").propose(plan) is Status.PENDING
    assert earlier_run(files, plan) is None
    assert open_as(tmp_path).propose(make_plan(run_id="old")) is Status.PENDING
