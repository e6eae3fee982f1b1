"""Each example does what its first lines promise, by the command that they name."""

from __future__ import annotations

import json
import os
import re
import runpy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.commands import run

from agfl_models.errors import ConfigError
from agfl_models.layers.layer import LAYERS
from agfl_protocol.config.run_config import fill
from agfl_server.search.slate import variants

EXAMPLES = Path(__file__).parents[2] / "simulations" / "examples"
Rows = list[dict[str, Any]]


def run_example(name: str, folder: Path, env: Mapping[str, str] | None = None) -> str:
    """Run an example by its command; return what it printed."""
    started = time.monotonic()
    done = run(EXAMPLES / name, folder, env=env)
    print(f"{name}: {time.monotonic() - started:.1f} s")  # pytest -rP shows it
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(folder: Path) -> Rows:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["aggregation"]["type"] == "secure"
    return config


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "run"
    run_example("own_model_on_digits.py", folder)
    return folder


def test_a_users_own_module_learns_digits_of_five_owners_under_secure_sums(digits: Path) -> None:
    assert config_of(digits)["model"] == {"family": "mlp", "hidden": 64}
    last = rows_of(digits)[-1]
    assert last["clients"] == 5
    assert last["eval/accuracy"] >= 0.95


def test_its_model_is_saved_and_needs_its_own_code_to_be_opened(digits: Path) -> None:
    assert (digits / "model" / "model.safetensors").stat().st_size > 4 * 4810
    done = run("agfl-model", "describe", digits)
    assert done.returncode != 0
    assert "model: unknown 'family' 'mlp' (known: decoder, encoder, encoder_decoder, huggingface)" in done.stderr


def test_text_of_three_owners_in_memory_makes_one_model(tmp_path: Path) -> None:
    run_example("own_text.py", tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["clients"] == 3
    assert rows[-1]["eval/bits_per_byte"] < 0.3 * rows[0]["eval/bits_per_byte"]


def test_a_method_of_ones_own_acts_is_reported_and_travels_under_secure_sums(tmp_path: Path) -> None:
    run_example("own_method.py", tmp_path)
    assert config_of(tmp_path / "sparse")["methods"] == [{"type": "sparse", "share": 0.1}]
    rows = rows_of(tmp_path / "sparse")
    assert all(0.1 < row["sparse/kept"] < 1 for row in rows[1:])
    assert "sparse/kept" in (tmp_path / "sparse" / "report.html").read_text()
    plain = rows_of(tmp_path / "plain")[-1]
    assert "sparse/kept" not in plain
    assert plain["eval/loss"] != rows[-1]["eval/loss"]


def test_a_layer_of_ones_own_learns_and_is_proposed_by_a_search_under_secure_sums(tmp_path: Path) -> None:
    printed = run_example("own_layer.py", tmp_path)
    assert [layer["type"] for layer in config_of(tmp_path / "leaky")["model"]["layers"]] == ["leaky", "ff"]
    rows = rows_of(tmp_path / "leaky")
    assert rows[-1]["eval/bits_per_byte"] < 0.4 * rows[0]["eval/bits_per_byte"]
    config_of(tmp_path / "search")
    raced = {path.name for path in (tmp_path / "search" / "search").iterdir() if path.is_dir()}
    assert raced == {"configured", "leaky"}
    chosen = yaml.safe_load((tmp_path / "search" / "search" / "chosen.yaml").read_text())["model"]["layers"]
    assert chosen[0]["type"] in ("attention", "leaky")
    assert printed.endswith(f"the search chose {chosen[0]['type']}\n")
    done = run("agfl-model", "describe", tmp_path / "leaky")
    assert "unknown 'type' 'leaky'" in done.stderr, "whoever opens it needs its code"


def test_its_layer_obeys_the_laws_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step as at once, no look ahead, no word of padding, and a narrower one is the first units."""
    monkeypatch.setattr(LAYERS, "_kinds", dict(LAYERS._kinds))
    monkeypatch.setattr(LAYERS, "_types", dict(LAYERS._types))
    config = runpy.run_path(str(EXAMPLES / "own_layer.py"))["LeakyConfig"](input_dim=6, hidden_dim=8)
    assert "leaky" in variants(), "a search proposes it by itself"
    layer, x_BTD = config.build(), torch.randn(2, 5, 6)
    whole = layer(x_BTD)
    stepped, _ = layer.steps(x_BTD, layer.initial_state(2))
    torch.testing.assert_close(whole, stepped)
    torch.testing.assert_close(layer(x_BTD[:, :3]), whole[:, :3])
    mask = torch.tensor([[True, False, True, True, False]] * 2)
    torch.testing.assert_close(layer(x_BTD, mask)[mask], layer(x_BTD[:, [0, 2, 3]]).flatten(0, 1))
    resolved = config.resolved(6, residual=False, name="layer")
    assert sum(p.numel() for p in layer.parameters()) == resolved.num_parameters()
    assert sum(p.numel() for p in resolved.narrowed(0.5, "layer").build().parameters()) == 4 * (3 * 6 + 1)


def test_an_adapter_of_a_pretrained_model_is_all_that_travels_under_secure_sums(tmp_path: Path) -> None:
    printed = run_example("lora_of_a_pretrained_model.py", tmp_path)
    config = config_of(tmp_path / "run")
    assert config["model"]["lora"]["rank"] == 8
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["clients"] == 3
    assert rows[-1]["eval/bits_per_byte"] < 0.4 * rows[0]["eval/bits_per_byte"]
    travels, whole = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]+\d", printed.splitlines()[0]))
    assert travels < whole / 4


def test_the_trainer_of_transformers_learns_under_secure_sums_and_repeats_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "HF_HUB_OFFLINE": "1"}
    run_example("transformers_trainer.py", tmp_path / "first", environment)
    assert list((tmp_path / "scratch").iterdir()) == [], "it leaves no file behind"
    assert config_of(tmp_path / "first" / "run")["training"]["trainer"] == {"type": "transformers", "warmup_steps": 2}
    import transformers_trainer

    again = transformers_trainer.run(tmp_path / "again")
    rows = rows_of(tmp_path / "first" / "run")
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
