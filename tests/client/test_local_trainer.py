"""Another trainer than the shipped one: a run names it, it gets what was promised, and what it returns is checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from tests.client.test_node import request_of
from tests.plugin_files import install, registries_kept
from tests.tiny_federation import plain_node

from agfl_client.approval.approval_files import ApprovalFiles, Status
from agfl_client.approval.approvals import Approvals, decide
from agfl_client.approval.plan_text import describe
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import AgflError, ConfigError, DataError, WireError
from agfl_models.registry import Registry
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.config.trainer_config import TRAINERS, Serves, TrainerConfig
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork
from agfl_protocol.messages.wire import Answer, ProposeRequest
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.plan_fields import PlanViolation, check_fields

MakeConfig = Callable[..., RunConfig]
Act = Callable[[LocalWork], Any]
OTHER = "training.trainer={type: other}"
MEANS = ("aggregation.max_weight=99", "aggregation.averaging=mean")
NEEDS = {
    Serves.SGD: (["training.optimizer={type: sgd, lr: 0.5}"], "training.optimizer sgd"),
    Serves.ADAMW: (["training.optimizer={type: adamw, lr: 0.5}"], "training.optimizer adamw"),
    Serves.DELTA_SGD: (["training.optimizer={type: delta_sgd}"], "training.optimizer delta_sgd"),
    Serves.SCHEDULE: (["training.schedule={type: warmup, warmup_steps: 3}"], "training.schedule warmup"),
    Serves.EPOCHS: (
        ["training.local_steps=null", "training.local_epochs=1", *MEANS],
        "training.local_epochs",
    ),
    Serves.PROXIMAL: (["training.proximal_mu=0.1"], "training.proximal_mu"),
    Serves.CLIPPING: (["training.max_grad_norm=2"], "training.max_grad_norm"),
    Serves.BFLOAT16: (["training.precision=bfloat16"], "training.precision bfloat16"),
    Serves.EQUAL_STEPS: (["aggregation.averaging=normalized"], "aggregation.averaging normalized"),
    Serves.WIDTHS: (["elastic={widths: [0.5, 1.0]}"], "elastic"),
}
SHAPING = {
    "scaffold": ["aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"],
    "feddyn": ["aggregation.server_optimizer={type: feddyn}", "aggregation.weighting=uniform"],
    "fedcm": ["methods=[{type: fedcm}]"],
}


class OtherTrainer(LocalTrainer):
    """Does as `act` says."""

    act: ClassVar[Act] = staticmethod(BatchTrainer().train)

    def train(self, work: LocalWork) -> LocalResult:
        result: LocalResult = type(self).act(work)
        return result


class OtherConfig(TrainerConfig):
    serves = frozenset(Serves)
    type: Literal["other"]
    beta: float = 1.0

    def build(self) -> LocalTrainer:
        return OtherTrainer()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    mine: Registry[TrainerConfig] = Registry(TrainerConfig)  # type: ignore[type-abstract]
    mine.register(OtherConfig)
    for name in ("_kinds", "_types", "_origins"):
        monkeypatch.setattr(TRAINERS, name, getattr(mine, name))


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], None]:
    return lambda act: monkeypatch.setattr(OtherTrainer, "act", staticmethod(act))


@pytest.fixture
def owner(make_owners: Callable[..., Path]) -> Path:
    return make_owners(1) / "owner-00.jsonl"


def lanes_of(config: RunConfig, owner: Path, plugins: tuple[str, ...] = ()) -> bytes:
    """What a node sends of one round."""
    node = plain_node(owner)
    node._policy = node._policy.model_copy(update={"plugins": plugins})
    reply = node.handle_round(request_of(config, evaluate=False))
    return b"".join(array.data for record in reply.array_records.values() for array in record.values())


def test_a_run_that_names_no_trainer_says_nothing_of_one(run_config: MakeConfig) -> None:
    """So it is the same run, by its hash, and the same plan, by its text, as before there were others."""
    for text in (run_config().client_plan.to_json(), run_config().to_yaml(), json.dumps(run_config().defining)):
        assert "trainer" not in text
    assert run_config(OTHER).hash != run_config().hash


def test_the_plan_carries_the_trainer_with_its_settings_and_pins_it(run_config: MakeConfig) -> None:
    config = run_config("training.trainer={type: other, beta: 2}")
    plan = client_plan_from_json(config.client_plan.to_json())
    assert plan.training.trainer == OtherConfig(type="other", beta=2)
    for asked in (run_config(OTHER), run_config()):
        with pytest.raises(PlanViolation, match=r"^training\.trainer.*AGFL-PLAN-021"):
            check_fields(plan.fields(), asked.client_plan.fields())


def test_an_owner_who_is_asked_for_approval_reads_its_name(run_config: MakeConfig) -> None:
    names = tuple(f"owner-{i}" for i in range(3))
    for overrides, is_told in (([OTHER], True), ([], False)):
        plan = Plan.of(run_config(*overrides).client_plan, "run", names, 3)
        assert ("\ntrainer: other, in place of the shipped one" in describe(plan, None, None)) == is_told


INSTALLED = """
from typing import Literal
from agfl_client.training.trainer import BatchTrainer
from agfl_protocol.config.trainer_config import Serves, TrainerConfig


class InstalledConfig(TrainerConfig):
    serves = frozenset(Serves)
    type: Literal["installed"]

    def build(self):
        return BatchTrainer()
"""


def test_an_installed_trainer_is_a_plug_in_that_the_plan_pins(
    run_config: MakeConfig, owner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = {"agfl.trainers": {"installed": "own_trainer:InstalledConfig"}}
    site = install(tmp_path / "site", "own-trainer", "1.0", {"own_trainer.py": INSTALLED}, offers)
    monkeypatch.syspath_prepend(str(site))
    named = "training.trainer={type: installed}"
    with registries_kept():
        config = run_config("plugins=[own-trainer]", named)
        (pin,) = config.client_plan.fields()["plugins"]
        assert (pin["name"], pin["version"]) == ("own-trainer", "1.0")
        assert lanes_of(config, owner, ("own-trainer",)) == lanes_of(run_config(), owner)
        with pytest.raises(PolicyViolation, match=r"^plugins: must hold own-trainer .*AGFL-POLICY-013"):
            lanes_of(config, owner)
        with pytest.raises(ConfigError, match=r"training\.trainer: unknown 'type' 'installed'"):
            run_config(named)


def test_it_gets_what_the_shipped_one_gets(run_config: MakeConfig, owner: Path) -> None:
    """Hence one that does the same sends the same bits, whatever methods make of the gradients."""
    for overrides in ([], SHAPING["fedcm"], NEEDS[Serves.WIDTHS][0], NEEDS[Serves.EPOCHS][0]):
        assert lanes_of(run_config(OTHER, *overrides), owner) == lanes_of(run_config(*overrides), owner)


@pytest.mark.parametrize("need", NEEDS)
def test_a_run_that_needs_more_is_refused_by_name_on_both_sides(
    run_config: MakeConfig, need: Serves, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, setting = NEEDS[need]
    # What the others of the tiny run's settings need, it can do.
    sent = run_config(OTHER, *overrides).client_plan.to_json()
    monkeypatch.setattr(OtherConfig, "serves", frozenset(Serves) - {need})
    line = rf"training\.trainer: must be one that can serve {setting}, got other, which cannot \[AGFL-CONFIG-230\]$"
    with pytest.raises(ConfigError, match=line):
        run_config(OTHER, *overrides)
    with pytest.raises(ConfigError, match=line):
        client_plan_from_json(sent)
    run_config(*overrides)
    assert {*NEEDS, Serves.GRADIENTS} == set(Serves)


@pytest.mark.parametrize("method", SHAPING)
def test_so_is_a_method_that_changes_gradients(
    run_config: MakeConfig, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_config(OTHER, *SHAPING[method])
    monkeypatch.setattr(OtherConfig, "serves", frozenset(Serves) - {Serves.GRADIENTS})
    with pytest.raises(ConfigError, match=rf"can serve method {method}, got other, .*AGFL-CONFIG-230"):
        run_config(OTHER, *SHAPING[method])
    run_config(OTHER)


def test_a_client_that_does_not_know_the_trainer_says_its_name(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = run_config(OTHER).client_plan.to_json()
    monkeypatch.setattr(TRAINERS, "_kinds", {})
    with pytest.raises(
        ConfigError, match=r"training\.trainer: unknown 'type' 'other' \(known: none\) .AGFL-CONFIG-009"
    ):
        client_plan_from_json(sent)


def changed(**fields: Any) -> Act:
    return lambda work: replace(BatchTrainer().train(work), **fields)


def short(work: LocalWork) -> LocalResult:
    result = BatchTrainer().train(work)
    return replace(result, delta=result.delta[1:])


def double(work: LocalWork) -> LocalResult:
    result = BatchTrainer().train(work)
    return replace(result, delta=result.delta.astype(np.float64))


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (lambda work: None, r"must return a LocalResult, and has not .AGFL-CONFIG-232"),
        (short, r"must return a delta of float32 \(6368,\), and has not .AGFL-CONFIG-233"),
        (double, r"must return a delta of float32 \(6368,\), and has not .AGFL-CONFIG-233"),
        (changed(delta=[0.0]), r"must return a delta of float32 \(6368,\), and has not .AGFL-CONFIG-233"),
        *(
            (change, r"must return losses that are numbers, and counts .* whole ones, and has not .AGFL-CONFIG-234")
            for change in (
                changed(num_steps=0),
                changed(num_steps=10**7),
                changed(num_predictions=-1),
                changed(num_predictions=10**400),
                changed(num_predictions=1.5),
                changed(num_predictions=None),
                changed(loss=None),
                changed(loss="2.0 nats"),
                changed(first_loss=[1.0]),
            )
        ),
    ],
)
def test_a_result_of_another_model_goes_nowhere(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None], act: Act, line: str
) -> None:
    acts(act)
    with pytest.raises(ConfigError, match=rf"^training\.trainer: other {line}"):
        lanes_of(run_config(OTHER), owner)


def test_numbers_that_ran_away_are_no_refusal_but_what_they_are_of_the_shipped_one(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal would tell the server of this owner alone."""
    genuine, healthy = BatchTrainer.train, lanes_of(run_config(), owner)

    def runs_away(trainer: Any, work: LocalWork) -> LocalResult:
        result = genuine(trainer, work)
        return replace(result, delta=result.delta * np.float32(np.nan))

    acts(lambda work: runs_away(BatchTrainer(), work))
    sent = lanes_of(run_config(OTHER), owner)
    monkeypatch.setattr(BatchTrainer, "train", runs_away)
    assert sent == lanes_of(run_config(), owner) != healthy


def test_its_own_errors_tell_the_server_that_there_was_one_and_the_owner_which(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(work: LocalWork) -> LocalResult:
        raise ValueError("the patient number 7")

    acts(fails)
    with caplog.at_level(logging.ERROR), pytest.raises(ConfigError) as caught:
        lanes_of(run_config(OTHER), owner)
    assert (
        str(caught.value)
        == "training.trainer: other must not fail, and has; its owner's log says why [AGFL-CONFIG-231]"
    )
    assert "the patient number 7" in caplog.text, "the owner reads it"


@pytest.mark.parametrize("takes_batches", [True, False])
def test_the_owners_deadline_holds(
    run_config: MakeConfig,
    owner: Path,
    acts: Callable[[Act], None],
    monkeypatch: pytest.MonkeyPatch,
    takes_batches: bool,
) -> None:
    """Within a batch where it takes batches as it should, and after all where it does not."""
    now, seen = [1000.0], []
    config = run_config(OTHER, "training.local_steps=30")
    node = plain_node(owner)
    node._policy = node._policy.model_copy(update={"max_seconds_per_round": 7.5})

    def slow(work: LocalWork) -> LocalResult:
        for batch in work.batches() if takes_batches else range(30):
            seen.append(batch)
            now[0] += 1
        return LocalResult(np.zeros(work.layout.size, np.float32), 1.0, 1, 30, 1.0)

    acts(slow)
    monkeypatch.setattr("agfl_client.training.deadline.time.monotonic", lambda: now[0])
    with pytest.raises(PolicyViolation, match=r"^max_seconds_per_round: .*AGFL-POLICY-012"):
        node.handle_round(request_of(config, evaluate=False))
    assert len(seen) == (8 if takes_batches else 30)


def test_the_weights_that_it_starts_from_are_not_its_own_to_change(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The node needs them once more, for the vector that it sends."""

    def overwrites(work: LocalWork) -> LocalResult:
        assert work.start is not None
        work.start[:] = 0
        return BatchTrainer().train(work)

    acts(overwrites)
    with pytest.raises(ConfigError, match=r"AGFL-CONFIG-231"):
        lanes_of(run_config(OTHER), owner)
    assert "read-only" in caplog.text


@pytest.mark.parametrize("error", [ConfigError, DataError, PolicyViolation, WireError])
def test_its_words_go_nowhere_though_they_come_as_an_error_of_ours(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None], error: type[AgflError]
) -> None:
    def fails(work: LocalWork) -> LocalResult:
        raise error("AGFL-POLICY-012", "the patient number 7")

    acts(fails)
    with pytest.raises(ConfigError, match=r"other must not fail, and has; .*AGFL-CONFIG-231"):
        lanes_of(run_config(OTHER), owner)


def test_counts_and_losses_of_other_types_are_those_numbers(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None]
) -> None:
    """Else the line of a refusal would have the number of an owner's predictions."""

    def other_types(work: LocalWork) -> LocalResult:
        done = BatchTrainer().train(work)
        counts: dict[str, Any] = {
            "num_steps": np.int64(done.num_steps),
            "num_predictions": torch.tensor(done.num_predictions),
        }
        losses: dict[str, Any] = {
            "loss": np.float64(done.loss),
            "first_loss": torch.tensor(done.first_loss, dtype=torch.float64),
        }
        return replace(done, **counts, **losses)

    expected = lanes_of(run_config(), owner)
    acts(other_types)
    assert lanes_of(run_config(OTHER), owner) == expected


def test_it_sees_no_text_before_its_run_is_approved(
    run_config: MakeConfig, owner: Path, acts: Callable[[Act], None], tmp_path: Path
) -> None:
    """The shipped one does, to measure what sums give away; this one could look at anything for as long as it likes."""
    ran = []

    def act(work: LocalWork) -> LocalResult:
        ran.append(work.check_deadline is not LocalWork.check_deadline)
        return BatchTrainer().train(work)

    acts(act)
    policy = Policy(allow_plain=True)
    plan = Plan.of(run_config(OTHER).client_plan, "run", (owner.stem, "x", "y"), 3)
    node = Node(owner.stem, owner, "cpu", policy=policy, approvals=Approvals(tmp_path, policy, "operator"))
    for _ in range(2):
        assert node.propose(ProposeRequest(plan.to_json())).answer is Answer.PENDING
    assert ran == []
    decide(ApprovalFiles(tmp_path), plan.run_id, plan.to_json(), Status.APPROVED)
    node.propose(ProposeRequest(plan.to_json()))
    assert ran == [True, True], "two updates, both within the owner's time"
