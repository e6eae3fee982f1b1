"""The owner's word is last: what a policy file says is what holds, and every refusal names the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_client.policy import Policy, PolicyViolation, load_policy
from agfl_models.errors import ConfigError
from agfl_protocol.run_config import RunConfig
from agfl_protocol.secagg.parameters import Parameters

Config = Callable[..., RunConfig]


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("{}")
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy == Policy()
    assert (policy.allow_plain, policy.uploads_per_round, policy.max_parameters) == (False, 3, 100_000_000)
    assert policy.parameters(10) == Parameters(3, 5)


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "min_cohort: 7\nmax_colluders: 4\nallow_plain: true\nuploads_per_round: 1\nmax_parameters: 10\n"
        "tasks: [summarization]\n"
    )
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.parameters(10) == Parameters(4, 7)
    assert policy.tasks == ("summarization",)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("tasks: [translatoin]", "tasks.0: Input should be 'language_modeling', 'translation', .*, got 'translatoin'"),
        ("min_cohrt: 3", r"unknown key 'min_cohrt' \(did you mean 'min_cohort'\?\)"),
        ("uploads_per_round: 0", "uploads_per_round: Input should be greater than 0, got 0"),
        ("max_colluders: 0", "max_colluders: Input should be greater than 0, got 0"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=line):
        load_policy(path)


def test_each_key_refuses_by_its_name(run_config: Config) -> None:
    config = run_config()
    Policy(allow_plain=True).check(config, 100)
    if config.aggregation.type == "plain":
        with pytest.raises(PolicyViolation, match=r"^allow_plain: must be true in this owner's policy"):
            Policy().check(config, 100)
    rule = r"^tasks: must be among summarization, translation for this owner, got language_modeling$"
    with pytest.raises(PolicyViolation, match=rule):
        Policy(allow_plain=True, tasks=("summarization", "translation")).check(config, 100)
    with pytest.raises(PolicyViolation, match=r"^max_parameters: must be at most 99 for this owner, got 100$"):
        Policy(allow_plain=True, max_parameters=99).check(config, 100)


def test_a_policy_that_a_roster_cannot_meet_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"^min_cohort: must be in"):
        Policy(min_cohort=11).parameters(10)
    with pytest.raises(ConfigError, match=r"^roster: must hold at least 3 owners for a secure sum, got 2$"):
        Policy().parameters(2)
