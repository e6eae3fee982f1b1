"""What a run leaves open is filled in by one table, and is from there on as if it had been written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from agfl_models.errors import ConfigError
from agfl_protocol.config.defaults import with_defaults
from agfl_protocol.config.presets import Preset
from agfl_protocol.config.run_config import RunConfig, load_run_config, load_with_defaults
from agfl_protocol.optimizers import ServerOptimizerConfig
from agfl_protocol.plans.client_plan import client_plan_from_json

OPEN = """
num_rounds: 2
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 16, layers: [{type: ff}]}
"""
STATED = """
training: {optimizer: {type: sgd, lr: 0.5}, local_steps: 24, max_grad_norm: 1.0}
aggregation: {server_optimizer: {type: auto}}
"""
# Client rates, server rates and epsilons of Reddi et al. 2021 in powers of ten, in the order of METHODS.
METHODS = ("fedadagrad", "fedadam", "fedyogi", "fedavgm", "fedavg")
PUBLISHED = {
    "cifar100": ((-1, -1.5, -1.5, -1.5, -1), (-1, 0, 0, 0, 0.5), (-2, -1, -1)),
    "emnist_cr": ((-1.5, -1.5, -1.5, -1.5, -1), (-1, -2.5, -2.5, -0.5, 0), (-2, -4, -4)),
    "emnist_ae": ((1.5, 1, 1, 0.5, 1), (-1.5, -1.5, -1.5, 0, 0), (-3, -3, -3)),
    "shakespeare": ((0, 0, 0, 0, 0), (-0.5, -2, -2, -0.5, 0), (-1, -3, -3)),
    "stackoverflow_nwp": ((-0.5, -0.5, -0.5, -0.5, -0.5), (-1.5, -2, -2, 0, 0), (-4, -5, -5)),
    "stackoverflow_lr": ((2, 2, 2, 2, 2), (1, -0.5, -0.5, 0, 0), (-2, -5, -5)),
}
MakeRun = Callable[..., RunConfig]


@pytest.fixture
def open_file(tmp_path: Path) -> Path:
    """A run that leaves training and aggregation open."""
    path = tmp_path / "open.yaml"
    path.write_text(OPEN)
    return path


@pytest.fixture
def run(open_file: Path) -> MakeRun:
    """Return that run with overrides."""
    return lambda *overrides: load_run_config(open_file, overrides)


def taken(content: Mapping[str, Any]) -> dict[str, Any]:
    _, defaults = with_defaults(content)
    assert all(default.reason for default in defaults)
    return {default.setting: default.value for default in defaults}


def test_what_is_taken_and_what_is_stated_are_one_run(run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "stated.yaml").write_text(OPEN + STATED)
    stated, none = load_with_defaults(tmp_path / "stated.yaml")
    assert (none, stated, stated.hash, stated.client_plan.to_json()) == (
        (),
        run(),
        run().hash,
        run().client_plan.to_json(),
    )


def test_the_written_run_leaves_nothing_open_and_is_the_same(run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(run().to_yaml())
    assert load_with_defaults(tmp_path / "config.yaml") == (run(), ())


def test_a_client_fills_in_nothing(run: MakeRun) -> None:
    assert client_plan_from_json(run().client_plan.to_json()) == run().client_plan
    for section, key in (("training", "optimizer"), ("training", "local_steps")):
        content = json.loads(run().client_plan.to_json())
        del content[section][key]
        with pytest.raises(ConfigError, match=rf"{section}.*{key}.*(missing|must be given)"):
            client_plan_from_json(json.dumps(content))


PRETRAINED = {"model": {"family": "huggingface"}}
EPOCHS = {"training": {"local_epochs": 1}}
YOGI = {"type": "fedyogi", "preset": "emnist_cr"}
SGD, ADAMW, TUNED = {"type": "sgd", "lr": 0.5}, {"type": "adamw", "lr": 2e-4}, {"type": "sgd", "lr": 0.03162}


@pytest.mark.parametrize(
    ("content", "setting", "value"),
    [
        ({}, "training.optimizer", SGD),
        ({}, "training.max_grad_norm", 1.0),
        ({}, "training.local_steps", 24),
        ({}, "aggregation.server_optimizer", {"type": "auto"}),
        ({}, "aggregation.averaging", None),
        (PRETRAINED, "training.optimizer", ADAMW),
        ({"aggregation": {"server_optimizer": YOGI}}, "training.optimizer", TUNED),
        ({**PRETRAINED, "aggregation": {"server_optimizer": YOGI}}, "training.optimizer", TUNED),
        ({"aggregation": {"server_optimizer": YOGI}}, "training.max_grad_norm", None),
        ({"aggregation": {"server_optimizer": {"type": "fedyogi"}}}, "training.optimizer", SGD),
        ({"training": {"optimizer": ADAMW}}, "training.max_grad_norm", None),
        (EPOCHS, "training.local_steps", None),
        (EPOCHS, "aggregation.averaging", "normalized"),
        ({"training": {"local_epochs": None}}, "training.local_steps", 24),
        ({**EPOCHS, "aggregation": {"averaging": "mean"}}, "aggregation.averaging", None),
        ({**EPOCHS, "aggregation": {"weighting": "loss"}}, "aggregation.averaging", None),
        ({**EPOCHS, "aggregation": {"server_optimizer": {"type": "fedexp"}}}, "aggregation.averaging", None),
    ],
)
def test_the_table(content: dict[str, Any], setting: str, value: Any) -> None:
    assert taken(content).get(setting) == value


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.local_epochs=1", "aggregation.max_weight=9"),
        ("training.local_epochs=1", "aggregation.weighting=loss"),
        ("training.local_epochs=1", "aggregation.max_weight=9", "aggregation.server_optimizer={type: fedexp}"),
        ("aggregation.server_optimizer={type: fedavg, preset: stackoverflow_lr}",),
        ("training.optimizer={type: delta_sgd}",),
    ],
)
def test_what_is_taken_fits_what_is_stated(run: MakeRun, overrides: tuple[str, ...]) -> None:
    run(*overrides)


@pytest.mark.parametrize("value", ["3", "[]", "null"])
def test_a_section_that_is_none_is_refused_and_not_replaced(run: MakeRun, value: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set: training: "):
        run(f"training={value}")


def test_the_presets_are_those_that_are_published() -> None:
    assert set(PUBLISHED) == set(get_args(Preset))


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_is_the_published_numbers(run: MakeRun, preset: str) -> None:
    client_rates, server_rates, taus = PUBLISHED[preset]
    for i, method in enumerate(METHODS):
        config = run(f"aggregation.server_optimizer={{type: {method}, preset: {preset}}}")
        optimizer, client = config.aggregation.server_optimizer, config.training.optimizer
        numbers = [client.lr, getattr(optimizer, "lr", None), *([optimizer.tau] if hasattr(optimizer, "tau") else [])]
        exponents = [client_rates[i], server_rates[i], *taus[i : i + 1]]
        assert [math.log10(number or 0) for number in numbers] == pytest.approx(exponents, abs=1e-4)
        assert client.type == "sgd"


def test_what_is_stated_beside_a_preset_stays() -> None:
    config: TypeAdapter[ServerOptimizerConfig] = TypeAdapter(ServerOptimizerConfig)
    stated = config.validate_python({"type": "fedyogi", "preset": "shakespeare", "lr": 0.5})
    assert stated.model_dump(include={"lr", "tau"}) == {"lr": 0.5, "tau": 1e-3}
    written = config.validate_python(stated.model_dump())
    assert written == stated


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        ("{type: fedyogi, preset: shakespear}", "preset: .*'shakespeare'.*, got 'shakespear'"),
        ("{type: nesterov, preset: shakespeare}", "unknown key 'preset'"),
        ("{type: fedavg, preset: [1]}", "preset: .*, got "),
    ],
)
def test_a_preset_that_is_none_is_one_line(run: MakeRun, optimizer: str, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"aggregation\.server_optimizer.*{line}"):
        run(f"aggregation.server_optimizer={optimizer}")
