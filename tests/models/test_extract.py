"""A model that is taken out of a wider one is that model's prefix, of the same task, and what cannot be is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_pretrained import TARGETS, write_pretrained
from typer.testing import CliRunner

from agfl_models import AutoGenModel
from agfl_models.cli import app
from agfl_models.errors import AgflError
from agfl_models.files.store import load_model, save_model
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.inference import open_model
from agfl_models.model.families import build_model
from agfl_models.model.rings import Rings
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.tokenizers.tokenizer import HuggingFaceTokenizerConfig

LAYERS = [{"type": "attention", "num_heads": 4, "num_kv_heads": 2}, {"type": "ff", "hidden_dim": 20}, {"type": "rnn"}]
COMMANDS = ["translate", "summarize", "answer", "generate", "classify"]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["extract", *map(str, arguments)])
    assert result.exception is None, result.exception
    return result.stdout


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["extract", *map(str, arguments)])
    assert isinstance(result.exception, AgflError), result.exception
    assert result.stdout == ""
    return str(result.exception)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    model = AutoGenModel({"vocab_size": 11, "dim": 16, "layers": LAYERS}, seed=1)
    save_model(tmp_path / "run" / "model", model.config, model.state_dict(), widths=(0.25, 0.5, 1.0))
    return tmp_path / "run"


def test_the_weights_are_prefixes_bit_for_bit(wide: Path, tmp_path: Path) -> None:
    run(wide, tmp_path / "narrow", "--width", 0.5)
    whole, part = (load_file(folder / "model.safetensors") for folder in (wide / "model", tmp_path / "narrow"))
    assert list(part) == list(whole)
    qkv, ff, rnn = "layers.0.qkv.weight", "layers.1", "layers.2.cell.rnn"
    expected = {
        # Of 4 queries, 2 keys and 2 values, each 4 wide, 2, 1 and 1; 10 of 20 hidden units; 8 of 16 channels a gate.
        qkv: torch.cat([whole[qkv][0:8], whole[qkv][16:20], whole[qkv][24:28]]),
        "layers.0.output.weight": whole["layers.0.output.weight"][:, :8],
        f"{ff}.expand.weight": whole[f"{ff}.expand.weight"][:10],
        f"{ff}.value.weight": whole[f"{ff}.value.weight"][:10],
        f"{ff}.output.weight": whole[f"{ff}.output.weight"][:, :10],
        f"{rnn}.weight_ih_l0": whole[f"{rnn}.weight_ih_l0"].view(3, 16, 16)[:, :8].flatten(0, 1),
        f"{rnn}.weight_hh_l0": whole[f"{rnn}.weight_hh_l0"].view(3, 16, 16)[:, :8, :8].flatten(0, 1),
        f"{rnn}.bias_ih_l0": whole[f"{rnn}.bias_ih_l0"].view(3, 16)[:, :8].flatten(),
        f"{rnn}.bias_hh_l0": whole[f"{rnn}.bias_hh_l0"].view(3, 16)[:, :8].flatten(),
        "layers.2.output.weight": whole["layers.2.output.weight"][:, :8],
    }
    for name, weight in part.items():
        assert torch.equal(weight, expected.get(name, whole[name])), name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_of_every_task_becomes_a_narrower_one_to_use(
    command: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, narrow_folder = tmp_path / "elastic", tmp_path / "narrow"
    model, saved = load_model(model_folders[command])
    save_model(folder, saved.model, model.state_dict(), saved.task, saved.tokenizer, (0.5, 1.0))
    said = run(folder, narrow_folder, "--width", 0.5)
    narrow, saved_narrow = load_model(narrow_folder)
    assert (saved_narrow.task, saved_narrow.tokenizer) == (saved.task, saved.tokenizer)
    assert isinstance(model, AutoGenModel)
    assert isinstance(narrow, AutoGenModel)
    assert narrow.config == model.config.narrowed(0.5)
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (narrow, model)]
    assert sizes[0] < sizes[1]
    assert said == f"wrote {narrow_folder}: {sizes[0]:,} of {sizes[1]:,} parameters\n"
    open_model(narrow_folder)

    whole_d = torch.cat([parameter.flatten() for parameter in trained_parameters(model).values()])
    part_d = torch.cat([parameter.flatten() for parameter in trained_parameters(narrow).values()])
    held_d = torch.from_numpy(Rings.of(model.config, (0.5, 1.0)).held(1))
    assert torch.equal(whole_d[held_d], part_d)


def test_the_whole_width_is_the_model_byte_for_byte(wide: Path, tmp_path: Path) -> None:
    run(wide, tmp_path / "same", "--width", 1)
    for name in ("model.safetensors", "config.yaml"):
        assert (tmp_path / "same" / name).read_bytes() == (wide / "model" / name).read_bytes()


def test_what_a_width_holds_does_not_depend_on_the_way_to_it(wide: Path, tmp_path: Path) -> None:
    run(wide, tmp_path / "half", "--width", 0.5)
    run(tmp_path / "half", tmp_path / "half of a half", "--width", 0.5)
    run(wide, tmp_path / "quarter", "--width", 0.25)
    written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("half of a half", "quarter")]
    assert written[0] == written[1]


@pytest.mark.parametrize(("width", "shown"), [("0", "0.0"), ("1.01", "1.01"), ("-1", "-1.0"), ("nan", "nan")])
def test_a_width_outside_0_to_1_is_refused(width: str, shown: str, wide: Path, tmp_path: Path) -> None:
    assert refusal(wide, tmp_path / "narrow", f"--width={width}").endswith(f"got {shown} [AGFL-CONFIG-098]")
    assert not (tmp_path / "narrow").exists()


def test_a_width_below_all_that_were_trained_is_refused(wide: Path, tmp_path: Path) -> None:
    rule = "width: must be at least the least of the trained widths"
    assert refusal(wide, tmp_path / "narrow", "--width", 0.2) == f"{rule} 0.25, 0.5, 1, got 0.2 [AGFL-CONFIG-108]"
    run(wide, tmp_path / "between", "--width", 0.4)
    assert (
        refusal(tmp_path / "between", tmp_path / "narrow", "--width", 0.6)
        == f"{rule} 0.625, 1, got 0.6 [AGFL-CONFIG-108]"
    )
    run(wide, tmp_path / "least", "--width", 0.25)
    rule = "width: must be 1 for a model whose config.yaml names no trained `widths`, as a run with `elastic` does"
    assert refusal(tmp_path / "least", tmp_path / "narrow", "--width", 0.5) == f"{rule}, got 0.5 [AGFL-CONFIG-107]"
    assert not (tmp_path / "narrow").exists()


def test_a_folder_with_content_is_refused_and_an_empty_one_is_not(wide: Path, tmp_path: Path) -> None:
    before = (wide / "model" / "model.safetensors").read_bytes()
    for folder in (wide, wide / "model", wide / "model" / "config.yaml"):
        line = f"{folder}: must be a new or empty folder, got one with content [AGFL-CHECKPOINT-002]"
        assert refusal(wide, folder, "--width", 0.5) == line
    assert (wide / "model" / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    run(wide, tmp_path / "empty", "--width", 0.5)
    load_model(tmp_path / "empty")


def test_a_pretrained_model_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"architecture": "causal", "lora": {"rank": 2, "targets": TARGETS["llama"]}}
    pretrained = write_pretrained(tmp_path / "llama", "llama")
    config = HuggingFaceConfig(family="huggingface", folder=pretrained, **settings)
    tokenizer = HuggingFaceTokenizerConfig(type="huggingface")
    save_model(tmp_path / "saved", config, trained_parameters(build_model(config, seed=0)), None, tokenizer)
    line = refusal(tmp_path / "saved", tmp_path / "narrow", "--width", 0.5)
    rule = "must be decoder, encoder or encoder_decoder to be narrowed"
    assert re.fullmatch(rf".*saved: model\.family: {rule}, got huggingface .AGFL-CONFIG-106.", line)
    assert not (tmp_path / "narrow").exists()
