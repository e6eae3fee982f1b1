"""Each example does what its first lines promise, by the command that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.commands import run

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
