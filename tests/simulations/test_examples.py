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
    folder = tmp_path_factory.mktemp("digits")
    done = run(EXAMPLES / "own_model_on_digits.py", folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


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
