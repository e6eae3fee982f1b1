"""The owner's word is last: what a policy file says is what holds, and every refusal names the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_client.policy import Policy, PolicyViolation, load_policy
from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.secagg.parameters import Parameters

Config = Callable[..., RunConfig]


@pytest.mark.parametrize("content", ["{}", "", "# min_cohort: 5\n"])
def test_an_empty_file_is_the_default(tmp_path: Path, content: str) -> None:
    (tmp_path / "policy.yaml").write_text(content)
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy == Policy()
    assert (policy.allow_plain, policy.uploads_per_round, policy.max_parameters) == (False, 3, 100_000_000)
    assert policy.parameters(10) == Parameters(3, 6)
    assert (policy.runs, policy.max_sampled_examples, policy.max_pairs) == ("ask", 512, None)
    assert policy.announcements_per_round == 16


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "min_cohort: 7\nmax_colluders: 4\nallow_plain: true\nuploads_per_round: 1\nmax_parameters: 10\n"
        "tasks: [summarization]\nmax_seconds_per_round: 90\nmax_memory: 8GB\n"
    )
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.parameters(10) == Parameters(4, 7)
    assert policy.tasks == ("summarization",)
    assert (policy.max_seconds_per_round, policy.max_memory) == (90.0, 8 * 10**9)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "tasks: [translatoin]",
            r"tasks.0: unknown 'type' 'translatoin' \(did you mean 'translation'\?\).*AGFL-CONFIG",
        ),
        ("min_cohrt: 3", r"unknown key 'min_cohrt' \(did you mean 'min_cohort'\?\).*AGFL-CONFIG-001"),
        ("uploads_per_round: 0", "uploads_per_round: .*got 0.*AGFL-CONFIG-011"),
        ("runs: never", "runs: Input should be 'ask', 'same_operator_and_task' or 'all', got 'never'.*AGFL-CONFIG-009"),
        ("max_pairs: 0", "max_pairs: .*got 0.*AGFL-CONFIG-011"),
        ("max_colluders: 0", "max_colluders: .*got 0.*AGFL-CONFIG-011"),
        ("max_memory: 0", "max_memory: .*got 0.*AGFL-CONFIG-011"),
        ("max_memory: much", "max_memory: .*got 'much'.*AGFL-CONFIG-011"),
        ("max_seconds_per_round: .inf", "max_seconds_per_round: .*got inf.*AGFL-CONFIG-011"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=line):
        load_policy(path)


def test_each_key_refuses_by_its_name(run_config: Config) -> None:
    config = run_config()
    size = config.model.num_parameters()
    assert Policy(allow_plain=True, max_parameters=size).tier(config.client_plan) == 1
    with pytest.raises(PolicyViolation, match=r"^allow_plain: .*AGFL-POLICY-007"):
        Policy().tier(config.client_plan)
    rule = r"^tasks: must hold language_modeling to take part; it does not.*AGFL-POLICY-008"
    with pytest.raises(PolicyViolation, match=rule):
        Policy(allow_plain=True, tasks=("summarization", "translation")).tier(config.client_plan)
    with pytest.raises(PolicyViolation, match=rf"^max_parameters: must be at least {size}, .*AGFL-POLICY-003"):
        Policy(allow_plain=True, max_parameters=99).tier(config.client_plan)
    with pytest.raises(PolicyViolation, match=r"^max_width: must be at least 1, .*AGFL-POLICY-002"):
        Policy(allow_plain=True, max_width=0.5).tier(config.client_plan)


def test_an_owner_trains_as_many_rings_as_its_policy_permits(run_config: Config) -> None:
    config = run_config("elastic={widths: [0.5, 0.75, 1.0]}")
    sizes = [config.narrowed_model(k).num_parameters() for k in (1, 2, 3)]
    for max_width, tier in ((0.5, 1), (0.74, 1), (0.75, 2), (0.9, 2), (1.0, 3)):
        assert Policy(allow_plain=True, max_width=max_width).tier(config.client_plan) == tier
    for max_parameters, tier in ((sizes[0], 1), (sizes[1] - 1, 1), (sizes[1], 2), (sizes[2], 3)):
        assert Policy(allow_plain=True, max_parameters=max_parameters).tier(config.client_plan) == tier
    with pytest.raises(PolicyViolation, match=r"^max_width: .*AGFL-POLICY-002"):
        Policy(allow_plain=True, max_width=0.49).tier(config.client_plan)
    with pytest.raises(
        PolicyViolation, match=rf"^max_parameters: must be at least {sizes[0]}, the run's.*AGFL-POLICY-003"
    ):
        Policy(allow_plain=True, max_parameters=sizes[0] - 1).tier(config.client_plan)


def test_numbers_that_were_kept_of_one_plan_are_never_those_of_another(run_config: Config) -> None:
    small, large = run_config().client_plan, run_config("model.dim=32").client_plan
    sizes = {plan.model.num_parameters(): plan for plan in (small, large)}
    assert len(sizes) == 2
    for _ in range(2):  # in turn, as of owners who are asked for two runs
        for size, plan in sizes.items():
            assert Policy(allow_plain=True, max_parameters=size).tier(plan) == 1
            with pytest.raises(PolicyViolation, match=rf"^max_parameters: must be at least {size}, "):
                Policy(allow_plain=True, max_parameters=size - 1).tier(plan)


def test_a_policy_that_a_roster_cannot_meet_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"^min_cohort: .*AGFL-CONFIG-045"):
        Policy(min_cohort=11).parameters(10)
    with pytest.raises(ConfigError, match=r"^roster: .*got 2.*AGFL-CONFIG-043"):
        Policy().parameters(2)
