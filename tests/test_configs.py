"""Every shipped configuration runs: one short round of it, by the command a person would type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.commands import run

from agfl_models.reading.corpora import corpus_of
from agfl_protocol.config.run_config import load_run_config
from agfl_server import cli as server_cli
from agfl_sim.cli import DEFAULT_CONFIG, SHIPPED_CONFIGS

CONFIGS = sorted(path for path in SHIPPED_CONFIGS.glob("*.yaml") if not path.stem.endswith("-full"))
FULL = sorted(SHIPPED_CONFIGS.glob("*-full.yaml"))
SHORT = ("num_rounds=1", "training.local_steps=1", "training.batch_size=1", "evaluation.max_examples=1")
FEW_MERGES = ("tokenizer.vocab_size=280", "model.vocab_size=280")
FEW_OWNERS = ("data.partition=natural", "data.num_owners=6")
AS_SHIPPED = "text_classification"  # the quickest one runs with all its owners


def test_the_default_is_shipped() -> None:
    assert DEFAULT_CONFIG in {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_runs(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = load_run_config(path)
    short = (*SHORT, *FEW_MERGES) if config.tokenizer.type == "bpe" else SHORT
    short = short if path.stem == AS_SHIPPED else (*short, *FEW_OWNERS)
    overrides = [part for value in short for part in ("--set", value)]
    done = run("agfl-simulate", path.stem, "--output", output, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert config.data.num_owners is not None
    assert rows[1]["clients"] == (config.data.num_owners if path.stem == AS_SHIPPED else 6)
    assert config.data.num_owners <= len(corpus_of(config.task.type, config.data.corpus).load())
    assert (output / "report.html").exists()
    assert sorted(str(p.relative_to(output)) for p in output.rglob("model*")) == ["model", "model/model.safetensors"]


def test_each_task_has_a_long_run_that_differs_in_length_alone() -> None:
    """So that the run above is a short round of it, too."""
    assert [path.stem for path in FULL] == [f"{path.stem}-full" for path in CONFIGS]
    for short, full in zip(map(load_run_config, CONFIGS), map(load_run_config, FULL), strict=True):
        assert full.hash == short.hash
        assert full.data == short.data
        assert full.num_rounds > short.num_rounds
        assert (full.baselines, short.baselines) == (True, False)


def test_the_servers_default_trains_the_model_of_the_default_simulation() -> None:
    default = load_run_config(Path(server_cli.__file__).parent / "default.yaml")
    shipped = load_run_config(SHIPPED_CONFIGS / f"{DEFAULT_CONFIG}.yaml")
    assert default.hash == shipped.hash
