"""Owners that hold another roster than the run has are left out by name; the run goes on with those who hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agfl_client.app import create_client_app
from agfl_client.approval.approvals import Approvals
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.plans.plan import Plan, roster_shown
from agfl_protocol.secagg.identity import SigningRoster
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_sim.engines.grid import InProcessGrid

POLICY = Policy(runs="all", max_colluders=1)
SECURE = ("aggregation.type=secure", "aggregation.min_cohort=null", "aggregation.max_colluders=1", "num_rounds=1")


class Recorder(Observer):
    def __init__(self) -> None:
        self.refusals: dict[str, str] = {}
        self.absences: list[Mapping[str, str]] = []

    def refused(self, name: str, reason: str) -> None:
        self.refusals[name] = reason

    def absent(self, reasons: Mapping[str, str]) -> None:
        self.absences.append(reasons)


class Owners:
    """Owners with keys, some of whom hold an older roster."""

    def __init__(self, files: list[Path], folder: Path) -> None:
        self.files, self.folder = files, folder
        self.keys = {path.stem: Ed25519PrivateKey.generate() for path in files}
        self.names = sorted(self.keys)

    def roster(self, **other_keys: Ed25519PrivateKey) -> SigningRoster:
        keys = {name: other_keys.get(name.replace("-", "_"), key) for name, key in self.keys.items()}
        return SigningRoster({name: key.public_key() for name, key in keys.items()})

    def without(self, name: str) -> SigningRoster:
        return SigningRoster({n: key.public_key() for n, key in self.keys.items() if n != name})

    def grid(self, rosters: Mapping[str, SigningRoster]) -> InProcessGrid:
        apps = {}
        for i, path in enumerate(self.files):
            home = self.folder / path.stem
            home.mkdir(exist_ok=True)
            member = SecureMember(path.stem, self.keys[path.stem], rosters[path.stem], POLICY, home)
            approvals = Approvals(home, POLICY, "operator")
            node = Node(path.stem, path, "cpu", policy=POLICY, member=member, folder=home, approvals=approvals)
            apps[1000 + i] = create_client_app(node)
        return InProcessGrid(apps, 1)


@pytest.fixture
def make(make_owners: Callable[..., Path], tmp_path: Path) -> Callable[[int], Owners]:
    return lambda count: Owners(sorted(make_owners(count).iterdir()), tmp_path)


def test_the_run_goes_on_with_those_who_hold_its_roster(
    make: Callable[[int], Owners], run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """One of five holds a roster in which another's key is an older one: same names, so its plan is not told apart."""
    owners, observer = make(5), Recorder()
    ours = owners.roster()
    older = owners.roster(owner_04=Ed25519PrivateKey.generate())
    held = dict.fromkeys(owners.names, ours) | {"owner-01": older}
    with owners.grid(held) as grid:
        state = run_federation(grid, run_config(*SECURE), tmp_path / "run", observer=observer, roster=ours)
    assert state.row["clients"] == 4
    assert observer.refusals["owner-01"] == (
        f"plan.roster: must be this owner's, {roster_shown(5, older.hash.hex())}; "
        f"got {roster_shown(5, ours.hash.hex())} [AGFL-PLAN-010]"
    )


def test_where_too_few_hold_the_roster_the_server_names_the_others_and_what_they_hold(
    make: Callable[[int], Owners], run_config: Callable[..., RunConfig]
) -> None:
    owners, observer = make(4), Recorder()
    ours, older = owners.roster(), owners.without("owner-03")
    held = dict.fromkeys(owners.names, older) | {"owner-03": ours}
    with owners.grid(held) as grid:
        nodes = ConnectedNodes(grid, observer, None)
        nodes.propose(Plan.of(run_config(*SECURE).client_plan, "run", owners.names, 4, roster=ours.hash))
        assert nodes.connected().keys() == {"owner-03"}
        reason = (
            f"plan.roster: must be this owner's, {roster_shown(3, older.hash.hex())}; "
            f"got {roster_shown(4, ours.hash.hex())}, owner-03 among them [AGFL-PLAN-010]"
        )
        assert nodes.absent() == dict.fromkeys(owners.names[:3], reason)
