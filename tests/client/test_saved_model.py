"""The trained model comes to the owners that want it: two files of the right size, of a run that they approved."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from agfl_client.app import create_client_app
from agfl_client.approval.announced import Announced
from agfl_client.approval.approvals import Approvals
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.saved_model import SavedModel
from agfl_models.errors import AgflError, ConfigError, WireError
from agfl_models.files.store import load_model
from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.update import Layout
from agfl_protocol.version import PROTOCOL_VERSION
from agfl_server.app import run_federation
from agfl_sim.engines.grid import InProcessGrid

MakeConfig = Callable[..., RunConfig]
POLICY = Policy(allow_plain=True, runs="all")
NAMES = ["owner-00", "owner-01", "owner-02"]
FILES = {"config.yaml", "model.safetensors", "received.json"}


class Site:
    """An owner that keeps the model of a run that it approved."""

    def __init__(self, config: RunConfig, data: Path, folder: Path, policy: Policy = POLICY) -> None:
        self.folder = folder / "my model"
        self.plan = Plan.of(config.client_plan, "run", NAMES, 2)
        approvals = Approvals(folder, policy, "operator")
        saved = SavedModel(self.folder)
        self.node = Node("owner-00", data, "cpu", policy=policy, approvals=approvals, saved=saved)
        self.layout = Layout.of(build_model(config.model, seed=1))
        vector = self.layout.flatten(build_model(config.model, seed=5))
        self.request = wire.ModelRequest("run", self.plan.hash, 3, config.client_plan.to_json(), vector)

    def propose(self) -> wire.ProposeReply:
        return self.node.propose(wire.ProposeRequest(self.plan.to_json()))


@pytest.fixture
def site(run_config: MakeConfig, make_owners: Callable[..., Path], tmp_path: Path) -> Site:
    return Site(run_config(), make_owners(1) / "owner-00.jsonl", tmp_path)


def test_the_model_is_kept_as_agfl_model_reads_it_and_the_next_takes_its_place(site: Site) -> None:
    assert site.propose() == wire.ProposeReply(wire.Answer.APPROVED, keeps_model=True)
    second = replace(site.request, round=4, model=-site.request.model)
    for request in (site.request, second):
        site.node.keep_model(wire.ModelRequest.from_record(request.to_record()))
        assert {path.name for path in site.folder.iterdir()} == FILES
        assert {stat.S_IMODE(path.stat().st_mode) for path in site.folder.iterdir()} == {0o644}
        model, saved = load_model(site.folder)
        assert np.array_equal(site.layout.flatten(model), request.model)
        assert saved.task == site.plan.client_plan.task
        assert json.loads((site.folder / "received.json").read_text()) == {"run": "run", "round": request.round}
        SavedModel(site.folder)  # and the command may be started with it again


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"run_id": "other"}, PlanViolation, "AGFL-PLAN-002"),
        ({"plan_hash": "00" * 32}, PlanViolation, "plan: .*AGFL-PLAN-003"),
        ({"model": np.zeros(7, np.float32)}, WireError, "got 7.*AGFL-WIRE-001"),
        ({"model": np.zeros(2**20, np.float32)}, WireError, "got 1048576.*AGFL-WIRE-001"),
    ],
)
def test_a_model_that_is_not_that_of_an_approved_run_is_not_written(
    site: Site, changes: dict[str, object], kind: type[AgflError], words: str
) -> None:
    site.propose()
    with pytest.raises(kind, match=words):
        site.node.keep_model(replace(site.request, **changes))  # type: ignore[arg-type]
    assert not site.folder.exists()
    assert site.node._workspace is not None, "a refusal leaves what is warm"


def test_neither_another_model_nor_one_that_is_not_finite(site: Site, run_config: MakeConfig) -> None:
    site.propose()
    wider = run_config("model.dim=32")
    with pytest.raises(PlanViolation, match=r"model\.dim: must be 16"):
        site.node.keep_model(replace(site.request, client_plan=wider.client_plan.to_json()))
    site.request.model[5] = np.nan
    with pytest.raises(WireError, match="AGFL-WIRE-002"):
        site.node.keep_model(site.request)
    assert not site.folder.exists()


def test_no_larger_model_than_the_policy_permits_now(
    site: Site, make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    """An owner may have made its policy stricter since it approved the plan."""
    site.propose()
    small = POLICY.model_copy(update={"max_parameters": site.layout.size - 1})
    approvals = Approvals(tmp_path, small, "operator")
    data, saved = make_owners(1) / "owner-00.jsonl", SavedModel(site.folder)
    node = Node("owner-00", data, "cpu", policy=small, approvals=approvals, saved=saved)
    with pytest.raises(PolicyViolation, match="AGFL-POLICY-003"):
        node.keep_model(site.request)
    assert not site.folder.exists()


def test_an_owner_that_wants_no_model_takes_none(
    run_config: MakeConfig, make_owners: Callable[..., Path], tmp_path: Path, site: Site
) -> None:
    data = make_owners(1) / "owner-00.jsonl"
    node = Node("owner-00", data, "cpu", policy=POLICY, approvals=Approvals(tmp_path, POLICY, "operator"))
    assert not node.propose(wire.ProposeRequest(site.plan.to_json())).keeps_model
    with pytest.raises(PolicyViolation, match="--save-model"):
        node.keep_model(site.request)


def test_no_more_is_fetched_than_the_model_has(site: Site) -> None:
    told = RecordDict({"config": ConfigRecord({"version": PROTOCOL_VERSION, "client_plan": site.request.client_plan})})
    keeping, not_keeping = (Announced(POLICY, None, keeps_model=keeps) for keeps in (True, False))
    most = keeping.most_bytes(wire.MODEL, told)
    assert most == not_keeping.most_bytes(wire.MODEL, told) + 4 * site.layout.size
    small = Announced(POLICY.model_copy(update={"max_parameters": site.layout.size - 1}), None, keeps_model=True)
    with pytest.raises(PolicyViolation, match="AGFL-POLICY-003"):
        small.most_bytes(wire.MODEL, told)


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "config.yaml", ".hidden"])
def test_what_others_keep_in_the_folder_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="AGFL-CONFIG-068"):
        SavedModel(tmp_path)
    with pytest.raises(ConfigError, match="AGFL-CONFIG-067"):
        SavedModel(tmp_path / name)


def test_owners_get_the_model_also_where_the_last_cohorts_did_not_have_them(
    run_config: MakeConfig, make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    nodes = {}
    files = sorted(make_owners(4).iterdir())
    for i, path in enumerate(files):
        home = tmp_path / "keys" / path.stem
        home.mkdir(parents=True)
        saved = SavedModel(tmp_path / "models" / path.stem) if i else None
        approvals = Approvals(home, POLICY, "operator")
        nodes[1000 + i] = Node(path.stem, path, "cpu", policy=POLICY, approvals=approvals, saved=saved)
    config = run_config("num_rounds=1", "aggregation.cohort_size=2", "aggregation.min_cohort=2")
    with InProcessGrid({node_id: create_client_app(node) for node_id, node in nodes.items()}, 1) as grid:
        run_federation(grid, config, tmp_path / "run", owners=[path.stem for path in files])
    assert all(node.finished for node in nodes.values())
    expected = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    written = {path.parent.name: path.read_bytes() for path in (tmp_path / "models").glob("*/model.safetensors")}
    assert written == dict.fromkeys(["owner-01", "owner-02", "owner-03"], expected)
