"""A server names plug-ins: it starts no code that an owner has not enabled, hides none, and learns little."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.plugin_files import OWN_TASK, install, registries_kept

from agfl_client.approval.approvals import Approvals
from agfl_client.approval.plan_text import describe
from agfl_client.approval.policy_command import refuse_disabled
from agfl_client.policy import Policy, PolicyViolation, load_policy
from agfl_models.errors import ConfigError
from agfl_models.plugins import Plugin, enable
from agfl_models.validation import dump_yaml
from agfl_protocol.config.run_config import RunConfig, load_finished, load_run_config
from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import METHODS, arrays_of, methods_of
from agfl_protocol.plans.client_plan import ClientPlan, client_plan_from_json
from agfl_protocol.plans.plan import Plan, plan_from_json
from agfl_protocol.plans.plan_fields import canonical

CODE = (
    OWN_TASK
    + """
from typing import ClassVar
from pydantic import field_validator
from torch import nn
from agfl_models.layers.feed_forward import FFConfig
from agfl_models.model.base_config import OwnModelConfig
from agfl_protocol.methods.method import ArraySpec, Method, MethodConfig


RAN = []


class OwnFF(FFConfig):
    type: Literal["own_ff"]

    @field_validator("*", mode="before")
    @classmethod
    def _note(cls, value):
        RAN.append(value)
        return value


class OwnModel(OwnModelConfig):
    family: Literal["own_model"]

    def build(self):
        return nn.Linear(2, 2)


class OwnMethodConfig(MethodConfig):
    type: Literal["own_method"]
    is_chosen = True


class OwnMethod(Method):
    name = "own_method"
    config = OwnMethodConfig
    sums = ("own/secret",)

    @classmethod
    def of(cls, round_):
        return cls()

    @staticmethod
    def arrays(plan, size, *, train):
        return {"x": ArraySpec("float32", (1,))}

    @staticmethod
    def refuse_misfit(plan):
        raise ValueError("in every run")
"""
)
OFFERS = {
    "agfl.layers": {"own_ff": "own_plugin:OwnFF"},
    "agfl.methods": {"own_method": "own_plugin:OwnMethod"},
    "agfl.models": {"own_model": "own_plugin:OwnModel"},
    "agfl.tasks": {"own_task": "own_plugin:OwnConfig"},
}
PIN = {"name": "own-plugin", "version": "1.0", "files": "0" * 64}
NAMED = {"task": {"type": "own_task", "validation_fraction": 0.1}, "model": {"family": "own_model"}}
Fields = dict[str, Any]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "own-plugin", "1.0", {"own_plugin.py": CODE}, OFFERS)
    with registries_kept():
        yield tmp_path / "site"


@pytest.fixture
def fields(run_config: Callable[..., RunConfig]) -> Fields:
    return run_config().client_plan.fields()


def line(content: Mapping[str, Any], code: str) -> str:
    """Return with which line a client refuses a plan, which must have this code."""
    with pytest.raises(ConfigError) as caught:
        client_plan_from_json(canonical(content))
    assert caught.value.code == code, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_attack_what_an_owner_has_not_enabled_is_not_even_imported(site: Path, fields: Fields) -> None:
    line(fields | {"plugins": [PIN]}, "AGFL-CONFIG-221")
    line(fields | NAMED | {"plugins": [PIN]}, "AGFL-CONFIG-221")
    line(fields | NAMED, "AGFL-CONFIG-009")
    assert "own_plugin" not in sys.modules


def test_attack_a_refusal_does_not_tell_what_is_installed(site: Path, fields: Fields) -> None:
    there = line(fields | {"plugins": [PIN]}, "AGFL-CONFIG-221")
    nowhere = line(fields | {"plugins": [PIN | {"name": "own-nothing"}]}, "AGFL-CONFIG-221")
    assert there.replace("own-plugin", "own-nothing") == nowhere


@pytest.mark.parametrize(
    "name",
    ["../own_plugin", "own_plugin", "own_plugin:OwnConfig", "os", "OS", "a" * 65, "\x1b[2J", "own-plugin\n", 3, None],
)
def test_attack_no_path_and_no_module_is_a_name(site: Path, fields: Fields, name: object) -> None:
    with pytest.raises(ConfigError) as caught:
        client_plan_from_json(canonical(fields | {"plugins": [PIN | {"name": name}]}))
    assert str(caught.value).isprintable()
    assert "own_plugin" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {**NAMED, "tokenizer": {"type": "bytes"}},
        {"model": {"family": "decoder", "vocab_size": 259, "dim": 8, "layers": [{"type": "own_ff"}]}},
        {
            "model": {
                "family": "decoder",
                "vocab_size": 259,
                "dim": 8,
                "layers": [{"repeat": 2, "layers": [{"type": "rnn"}, {"type": "own_ff"}]}],
            }
        },
        {"methods": [{"type": "own_method"}]},
    ],
)
def test_attack_code_that_is_enabled_runs_only_in_runs_that_pin_it(site: Path, fields: Fields, change: Fields) -> None:
    """And the server learns no more than of an owner that has not enabled it."""
    elsewhere = line(fields | change, "AGFL-CONFIG-009")
    (own,) = enable(["own-plugin"])
    assert line(fields | change, "AGFL-CONFIG-009") == elsewhere
    line(fields | change | {"plugins": [own.model_dump() | {"files": "1" * 64}]}, "AGFL-CONFIG-222")
    assert sys.modules["own_plugin"].RAN == []


@pytest.mark.parametrize("key", ["task", "model", "layers", "methods", "trainer"])
def test_attack_no_unknown_name_makes_an_owner_list_what_is_enabled(site: Path, fields: Fields, key: str) -> None:
    (own,) = enable(["own-plugin"])
    choices: dict[str, Fields] = {
        "task": {"task": {"type": "zzz"}},
        "model": {"model": {"family": "zzz"}},
        "layers": {"model": {"family": "decoder", "vocab_size": 259, "dim": 8, "layers": [{"type": "own_f"}]}},
        "methods": {"methods": [{"type": "own_metho"}]},
        "trainer": {"training": {**fields["training"], "trainer": {"type": "own"}}},
    }
    pinned: Fields = {"plugins": [own.model_dump()]}
    for pins in ({}, pinned):
        told = line({**fields, **choices[key], **pins}, "AGFL-CONFIG-009")
        assert not any(name in told for of in OFFERS.values() for name in of)


def test_a_plan_that_names_no_plugin_says_nothing_of_any(run_config: Callable[..., RunConfig]) -> None:
    """So it is the same run, and the same plan, as before there were any."""
    config = run_config()
    for text in (config.client_plan.to_json(), config.to_yaml(), json.dumps(config.defining)):
        assert "plugins" not in text


def test_a_run_that_is_over_is_read_with_another_version(
    site: Path, tmp_path: Path, run_config: Callable[..., RunConfig]
) -> None:
    pins = [PIN | {"version": "0.9"}]
    (tmp_path / "config.yaml").write_text(dump_yaml(run_config().model_dump(mode="json") | {"plugins": pins}))
    with pytest.raises(ConfigError, match="AGFL-CONFIG-222"):
        load_run_config(tmp_path / "config.yaml")
    assert load_finished(tmp_path / "config.yaml").plugins == enable(["own-plugin"])


def test_attack_a_candidate_of_a_search_brings_none_in_either(site: Path, run_config: Callable[..., RunConfig]) -> None:
    enable(["own-plugin"])
    config = run_config().client_plan
    plan = Plan.of(config, "run", ["alice", "bob", "carol"], 3, roster=bytes(32))
    model = config.fields()["model"]
    candidate = {**model, "layers": [{**model["layers"][0]}, {"type": "own_ff"}]}
    content = json.loads(plan.to_json()) | {"candidates": [candidate]}
    with pytest.raises(ConfigError, match="AGFL-CONFIG-009"):
        plan_from_json(canonical(content))


@pytest.mark.parametrize("change", [{"files": "1" * 64}, {"version": "1.1"}])
def test_attack_other_code_by_the_same_name_is_another_plugin(
    site: Path, fields: Fields, change: dict[str, str]
) -> None:
    (own,) = enable(["own-plugin"])
    told = line(fields | {"plugins": [own.model_dump() | change]}, "AGFL-CONFIG-222")
    assert "must be own-plugin" in told


def test_attack_a_plan_lists_each_once(site: Path, fields: Fields) -> None:
    (own,) = enable(["own-plugin"])
    line(fields | {"plugins": [own.model_dump()] * 2}, "AGFL-CONFIG-220")
    line(fields | {"plugins": [PIN | {"name": "own-z"}, own.model_dump()]}, "AGFL-CONFIG-220")
    with pytest.raises(ConfigError, match="plugins"):
        client_plan_from_json(canonical(fields | {"plugins": [own.model_dump()] * 17}))


def test_attack_a_neighbor_in_one_process_enables_nothing_for_another(site: Path, fields: Fields) -> None:
    """Of many owners in one process each has its own policy."""
    (own,) = enable(["own-plugin"])
    plan = client_plan_from_json(canonical(fields | {"plugins": [own.model_dump()]}))
    Policy(runs="all", allow_plain=True, plugins=("Own_Plugin",)).tier(plan)
    with pytest.raises(PolicyViolation, match="AGFL-POLICY-013"):
        Policy(runs="all", allow_plain=True).tier(plan)


def test_attack_a_method_has_no_part_in_a_run_that_does_not_name_it(site: Path, fields: Fields) -> None:
    """This one says that it belongs in each, and refuses each."""
    enable(["own-plugin"])
    assert any(method.name == "own_method" for method in METHODS)
    plan = client_plan_from_json(canonical(fields))
    assert "own_method" not in [method.name for method in methods_of(Round(plan))]
    assert "own_method" not in arrays_of(plan, 1, train=True)


def test_attack_a_method_that_no_plan_can_name_is_no_plugin(site: Path) -> None:
    code = CODE.replace("config = OwnMethodConfig", "config = None")
    install(site, "own-plugin", "1.0", {"own_plugin.py": code}, OFFERS)
    with pytest.raises(ConfigError, match="AGFL-CONFIG-218"):
        enable(["own-plugin"])


def test_a_policy_enables_before_it_says_which_tasks(site: Path, tmp_path: Path, fields: Fields) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("allow_plain: true\ntasks: [own_task]\nplugins: [own-plugin]\n")
    policy = load_policy(file)
    own = Plugin.model_validate(enable(["own-plugin"])[0].model_dump())
    plan: ClientPlan = client_plan_from_json(canonical(fields | {"plugins": [own.model_dump()]}))
    with pytest.raises(PolicyViolation, match="tasks: must hold language_modeling"):
        policy.tier(plan)


def test_an_owner_is_told_to_approve_with_the_policy_that_enables(
    site: Path, tmp_path: Path, run_config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    (own,) = enable(["own-plugin"])
    config = run_config("aggregation.type=secure").client_plan.model_copy(update={"plugins": (own,)})
    plan = Plan.of(config, "run-1", [f"owner-{i}" for i in range(5)], 5, roster=bytes(32))
    approvals = Approvals(tmp_path, Policy(plugins=("own-plugin",)), "operator")
    approvals.propose(plan)
    approvals.announce()
    assert caplog.messages[-1].endswith(f"agfl-client approve run-1 --keys {tmp_path} --policy FILE")
    assert f"plug-ins: {own}\n" in describe(plan, None, None)


def test_attack_an_operators_file_enables_nothing_at_an_owner_that_looks_at_it(site: Path, tmp_path: Path) -> None:
    """`agfl-client probe` and `agfl-client policy --run` read one."""
    run = tmp_path / "run.yaml"
    run.write_text("plugins: [own-plugin]\n")
    with pytest.raises(ConfigError, match="AGFL-CONFIG-270"):
        refuse_disabled(run, Policy())
    assert "own_plugin" not in sys.modules
    refuse_disabled(run, Policy(plugins=("own.plugin",)))
