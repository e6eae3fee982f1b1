"""Which plans an owner has approved: what its policy answers by itself, and what waits for a person."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path

from agfl_client.approval.approval_files import Approval, ApprovalFiles, Status, now
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.training.own_error import MIN_SIGMA
from agfl_models.errors import ConfigError
from agfl_protocol.plans.plan import Plan, differences

log = logging.getLogger("agfl.client")
MAX_PENDING = 16  # the server can put up as many as it likes
MAX_AUTOMATIC = 256  # approved by the policy alone, so that forgetting one costs nothing


class Approvals:
    """The plans of one node. operator: SHA-256 of the federation's CA certificate, in hexadecimal.

    Raises:
        ConfigError: as `ApprovalFiles`, of all methods, too.
    """

    def __init__(self, folder: Path, policy: Policy, operator: str) -> None:
        self._files, self._folder = ApprovalFiles(folder), folder
        self._policy = policy
        self._operator = operator
        self._unsaid: list[str] = []

    def propose(self, plan: Plan) -> Status:
        """Put a plan to the owner: its policy answers, or the plan waits for a person; `announce` says so.

        Raises:
            PolicyViolation: the plan holds out another share of this owner's text than earlier ones did.
        """
        with self._files.locked():
            known = self._files.read(plan.run_id)
            text = plan.to_json()
            is_same = known is not None and known.plan == text and known.operator == self._operator
            if known is not None and is_same and known.status is not Status.PENDING:
                return known.status
            _check_split(self._files.splits(), plan)
            status = Status.APPROVED if self._approves(plan, known) else Status.PENDING
            if known is not None and is_same and known.status is status:
                return status
            approval = Approval(
                status=status,
                by="policy" if status is Status.APPROVED else None,
                time=now(),
                operator=self._operator,
                sigma=known.sigma if known is not None and is_same else None,
                plan=text,
                previous=_approved_before(known),
            )
            self._store(plan, approval)
        if status is Status.PENDING:
            command = shlex.join(["agfl-client", "approve", plan.run_id, "--keys", str(self._folder)])
            command += " --policy FILE" if plan.client_plan.plugins else ""  # which says that they may be loaded
            self._unsaid = [f"run {plan.run_id} waits for your approval: {command}"]
            if known is not None and not is_same:
                before = known.plan_if_read()
                changes = [] if before is None else differences(before, plan)
                self._unsaid += [f"run {plan.run_id} has changed: {line}" for line in changes]
        return status

    def announce(self) -> None:
        """Log once what waits for a person, who may answer from then on."""
        for line in self._unsaid:
            log.warning("%s", line)
        self._unsaid = []

    def approved(self, run_id: str) -> Plan | None:
        """Return the plan of a run that the owner has approved under this operator, as it stands now."""
        known = self._files.read(run_id)
        if known is None or known.status is not Status.APPROVED or known.operator != self._operator:
            return None
        plan = known.read_plan()
        return plan if plan.run_id == run_id else None

    def sigma(self, run_id: str) -> float | None:
        """Return what `note_sigma` noted."""
        known = self._files.read(run_id)
        return None if known is None else known.sigma

    def note_sigma(self, run_id: str, sigma: float) -> Status:
        """Note how much an owner's updates vary by their batches; too little asks a person again, who sees it."""
        with self._files.locked():
            known = self._files.read(run_id)
            if known is None:
                raise ConfigError(
                    "AGFL-CONFIG-058", f"run {run_id}: must be a run that was put to this owner; it is not"
                )
            asks_again = sigma < MIN_SIGMA and known.status is Status.APPROVED and self._policy.runs != "all"
            if asks_again and (known.sigma is None or known.sigma >= MIN_SIGMA):
                known = known.changed(status=Status.PENDING, by=None, previous=known.plan)
                log.warning("run %s waits for your approval again: its draws hardly differ (%.2f)", run_id, sigma)
            self._files.write(run_id, known.changed(sigma=sigma))
            return known.status

    def _approves(self, plan: Plan, known: Approval | None) -> bool:
        """Whether the owner's policy approves a plan without asking. A run that changes is nothing that went before."""
        if self._policy.runs == "all":
            return True
        if self._policy.runs == "ask" or (known is not None and known.plan != plan.to_json()):
            return False
        earlier = (one for one in self._files.read_all().values() if one.status is Status.APPROVED)
        own = (one.plan_if_read() for one in earlier if one.operator == self._operator)
        return any(before is not None and _is_like(before, plan) for before in own)

    def _store(self, plan: Plan, approval: Approval) -> None:
        if approval.status is Status.APPROVED:
            fix_split(self._files, plan)
        self._files.write(plan.run_id, approval)
        if len(self._files.names) <= min(MAX_PENDING, MAX_AUTOMATIC):
            return  # so few need not be read
        found = self._files.read_all()
        waiting = [run_id for run_id, one in found.items() if one.status is Status.PENDING]
        automatic = [run_id for run_id, one in found.items() if one.by == "policy"]
        for names, most in ((waiting, MAX_PENDING), (automatic, MAX_AUTOMATIC)):
            oldest = [run_id for run_id in names if run_id != plan.run_id]
            for run_id in oldest[: max(len(names) - most, 0)]:
                self._files.remove(run_id)


def decide(files: ApprovalFiles, run_id: str, plan: str, status: Status) -> None:
    """Note a person's answer to a plan's text; raises ConfigError where another plan has taken its place meanwhile."""
    with files.locked():
        known = files.read(run_id)
        if known is None or known.plan != plan:
            raise ConfigError("AGFL-CONFIG-059", f"run {run_id}: its plan has changed meanwhile; look at it again")
        if status is Status.APPROVED:
            approved = known.read_plan()
            _check_split(files.splits(), approved)
            fix_split(files, approved)
        files.write(run_id, known.changed(status=status, by="owner"))


def fix_split(files: ApprovalFiles, plan: Plan) -> None:
    """Note how much this node holds out for a task: another share later would tell one document from all others."""
    task = plan.client_plan.task
    splits = files.splits()
    if task.type not in splits:
        files.write_splits({**splits, task.type: task.validation_fraction})


def earlier_run(files: ApprovalFiles, plan: Plan) -> Plan | None:
    """Return the plan that was approved last before this one: of the same run, or of the last one on this text."""
    known = files.read(plan.run_id)
    if known is not None and known.previous is not None and known.previous != plan.to_json():
        return known.model_copy(update={"plan": known.previous}).plan_if_read()
    others = [one for run_id, one in files.read_all().items() if run_id != plan.run_id]
    approved = [found for one in others if one.status is Status.APPROVED and (found := one.plan_if_read()) is not None]
    return approved[-1] if approved else None


def _check_split(splits: Mapping[str, float], plan: Plan) -> None:
    task = plan.client_plan.task
    fixed = splits.get(task.type)
    if fixed is not None and fixed != task.validation_fraction:
        rule = f"must be that of this owner's earlier runs with task {task.type}"
        raise PolicyViolation("AGFL-POLICY-001", f"task.validation_fraction: {rule}, got {task.validation_fraction}")


def _approved_before(known: Approval | None) -> str | None:
    if known is None:
        return None
    return known.plan if known.status is Status.APPROVED else known.previous


def _is_like(earlier: Plan, plan: Plan) -> bool:
    is_same_task = earlier.client_plan.task.type == plan.client_plan.task.type
    # A new roster is a new approval: other keys are other owners.
    return (
        is_same_task
        and earlier.roster == plan.roster
        and earlier.members == plan.members
        and earlier.groups == plan.groups
    )
