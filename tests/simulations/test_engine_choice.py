"""What `auto` takes, by what a run says of itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from torch import nn

from agfl_models.errors import ConfigError
from agfl_models.model.base_config import FAMILIES, OwnModelConfig
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.engines import choice
from agfl_sim.engines.choice import choose_engine
from agfl_sim.engines.workers.own_classes import own_classes
from agfl_sim.partition import Owners, owners_of

LONG = SHIPPED_CONFIGS / "language_modeling.yaml"


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "usable_cpus", lambda: 2)


def choose(config: RunConfig, tmp_path: Path, device: str = "cpu") -> tuple[str, str | None]:
    return choose_engine(config, owners_of(config, tmp_path / "owners"), device)


def test_long_run_takes_processes_and_a_short_one_does_not(
    tmp_path: Path, run_config: Callable[..., RunConfig], make_owners: Callable[..., Path]
) -> None:
    assert choose(load_run_config(LONG), tmp_path) == ("processes", None)
    assert choose(load_run_config(LONG, ["num_rounds=2"]), tmp_path) == ("inline", None)
    assert choose(run_config(f"data.path={make_owners(3)}"), tmp_path) == ("inline", None)


def test_epochs_count_by_the_bytes_of_text(tmp_path: Path, run_config: Callable[..., RunConfig]) -> None:
    config = run_config("training={batch_size: 4, local_epochs: 2}", "aggregation.max_weight=1000", "num_rounds=10")
    path = tmp_path / "ann.jsonl"
    assert choose_engine(config, Owners([path], tmp_path, {path: bytes(128_000)}), "cpu")[0] == "inline"
    assert choose_engine(config, Owners([path], tmp_path, {path: bytes(1_280_000)}), "cpu")[0] == "processes"
    path.write_bytes(bytes(1_280_000))
    assert choose_engine(config, Owners([path], tmp_path, {}), "cpu")[0] == "processes"


def test_one_processor_or_a_gpu_has_no_use_for_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(load_run_config(LONG), tmp_path, "meta") == ("inline", None)
    monkeypatch.setattr(choice, "usable_cpus", lambda: 1)
    assert choose(load_run_config(LONG), tmp_path) == ("inline", None)


class LargeConfig(OwnModelConfig):
    """A model that a test defines where a new process can import it, if it is told the module."""

    family: Literal["large"]

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A long run of that model."""
    monkeypatch.setattr(FAMILIES, "_kinds", dict(FAMILIES._kinds))
    monkeypatch.setattr(FAMILIES, "_types", dict(FAMILIES._types))
    FAMILIES.register(LargeConfig)
    config = load_run_config(LONG)
    return config.model_copy(update={"model": LargeConfig(family="large"), "num_rounds": 10**4})


def test_class_of_a_notebook_keeps_a_run_in_its_process_and_says_so(
    own: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("own_models")
    monkeypatch.setitem(sys.modules, "own_models", module)
    monkeypatch.setattr(LargeConfig, "__module__", "own_models")
    owners = owners_of(load_run_config(LONG), tmp_path / "owners")
    rule = "LargeConfig must be in a module that a new process can import, got own_models"
    assert choose_engine(own, owners, "cpu") == ("inline", f"engine   inline, not processes: {rule}")
    vars(module)["LargeConfig"] = LargeConfig
    assert choose_engine(own, owners, "cpu") == ("processes", None)
    assert own_classes(own, "processes") == (("own_models", "LargeConfig"),)
    monkeypatch.setattr(LargeConfig, "__module__", "__main__")
    with pytest.raises(ConfigError, match=r"LargeConfig must be in a module .* got __main__ .AGFL-CONFIG-283"):
        own_classes(own, "processes")
