"""Each example does what its first lines promise, by the command that they name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.commands import run

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import fill

EXAMPLES = Path(__file__).parents[2] / "simulations" / "examples"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "run"
    done = run(EXAMPLES / "own_model_on_digits.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_users_own_module_learns_digits_of_five_owners_under_secure_sums(digits: Path) -> None:
    config = yaml.safe_load((digits / "config.yaml").read_text())
    assert config["aggregation"]["type"] == "secure"
    last = json.loads((digits / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["clients"] == 5
    assert last["eval/accuracy"] >= 0.95


def test_its_model_is_saved_and_needs_its_own_code_to_be_opened(digits: Path) -> None:
    assert (digits / "model" / "model.safetensors").stat().st_size > 4 * 4810
    done = run("agfl-model", "describe", digits)
    assert done.returncode != 0
    assert "model: unknown 'family' 'mlp' (known: decoder, encoder, encoder_decoder, huggingface)" in done.stderr


def test_text_of_three_owners_in_memory_makes_one_model(tmp_path: Path) -> None:
    done = run(EXAMPLES / "own_text.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["clients"] == 3
    assert rows[-1]["eval/bits_per_byte"] < 0.3 * rows[0]["eval/bits_per_byte"]


def test_a_method_of_ones_own_acts_is_reported_and_travels_under_secure_sums(tmp_path: Path) -> None:
    done = run(EXAMPLES / "own_method.py", tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "sparse" / "config.yaml").read_text())
    assert (config["methods"], config["aggregation"]["type"]) == ([{"type": "sparse", "share": 0.1}], "secure")
    rows = [json.loads(line) for line in (tmp_path / "sparse" / "metrics.jsonl").read_text().splitlines()]
    assert all(0.1 < row["sparse/kept"] < 1 for row in rows[1:])
    assert "sparse/kept" in (tmp_path / "sparse" / "report.html").read_text()
    plain = (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()
    assert "sparse/kept" not in plain[-1]
    assert json.loads(plain[-1])["eval/loss"] != rows[-1]["eval/loss"]


def test_the_trainer_of_transformers_learns_under_secure_sums_and_repeats_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "HF_HUB_OFFLINE": "1"}
    done = run(EXAMPLES / "transformers_trainer.py", tmp_path / "first", env=environment)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "scratch").iterdir()) == [], "it leaves no file behind"
    config = yaml.safe_load((tmp_path / "first" / "run" / "config.yaml").read_text())
    assert config["training"]["trainer"] == {"type": "transformers", "warmup_steps": 2}
    assert config["aggregation"]["type"] == "secure"
    import transformers_trainer

    again = transformers_trainer.run(tmp_path / "again")
    rows = [json.loads(line) for line in (tmp_path / "first" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in again.rows]
    assert rows[-1]["clients"] == 3
    assert rows[-1]["eval/bits_per_byte"] < 0.5 * rows[0]["eval/bits_per_byte"]
    losses = [row["train/loss"] for row in rows[1:]]
    assert losses == sorted(losses, reverse=True)
    models = [tmp_path / one / "run" / "model" / "model.safetensors" for one in ("first", "again")]
    assert len({model.read_bytes() for model in models}) == 1


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"aggregation": {"server_optimizer": {"type": "scaffold"}, "weighting": "uniform"}}, "method scaffold"),
        ({"training": {"optimizer": {"type": "delta_sgd"}}}, "training.optimizer delta_sgd"),
    ],
)
def test_what_the_trainer_of_transformers_cannot_serve_is_refused_by_name(
    changed: dict[str, dict[str, Any]], what: str
) -> None:
    from transformers_trainer import RUN

    content = {**RUN, **changed, "training": {**RUN["training"], "optimizer": {"type": "sgd", "lr": 0.5}}}
    content["training"] |= changed.get("training", {})
    with pytest.raises(ConfigError) as caught:
        fill(content, (), "run.yaml")
    line = f"run.yaml: training.trainer: must be one that can serve {what}, got transformers, which cannot"
    assert str(caught.value) == f"{line} [AGFL-CONFIG-230]"
