"""A saved model comes back exactly, equal weights are equal files, and bad files are refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from agfl_models import AutoGenModel
from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.files.store import load_model, save_model
from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tasks.translation import TranslationConfig
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig, BytesTokenizerConfig
from agfl_models.version import VERSION

CONFIG: dict[str, Any] = {
    "vocab_size": 259,
    "dim": 16,
    "layers": [{"repeat": 2, "layers": [{"type": "attention"}, {"type": "rnn"}, {"type": "ff"}]}],
}

TASK = LanguageModelingConfig(type="language_modeling", sequence_length=16)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = AutoGenModel(CONFIG, seed=1)
    save_model(tmp_path / "run" / "model", model.config, model.state_dict(), TASK)
    return tmp_path / "run" / "model"


@pytest.mark.parametrize("is_run_folder", [False, True])
def test_a_saved_model_comes_back_exactly(saved: Path, is_run_folder: bool) -> None:
    original = AutoGenModel(CONFIG, seed=1)
    model, config = load_model(saved.parent if is_run_folder else saved)
    assert config.model.resolve() == original.config
    assert (config.task, config.tokenizer) == (TASK, BytesTokenizerConfig())
    ids_BT = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids_BT), original(ids_BT))
    assert all(torch.equal(model.state_dict()[name], w) for name, w in original.state_dict().items())


def test_loading_leaves_the_global_generator_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_weights_are_equal_bytes_and_nothing_else_is_left(saved: Path, tmp_path: Path) -> None:
    model, config = load_model(saved)
    reordered = dict(reversed(list(model.state_dict().items())))
    save_model(tmp_path / "again", config.model, reordered, config.task)
    for name in ("model.safetensors", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    assert sorted(os.listdir(saved)) == ["config.yaml", "model.safetensors"]


def test_a_crash_while_writing_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "model.safetensors").read_bytes()
    seen: list[str] = []

    def crash(descriptor: int) -> None:
        seen.extend(os.listdir(saved))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", crash)
    other = AutoGenModel(CONFIG, seed=2)
    with pytest.raises(CheckpointError, match=r"model: .*AGFL-CHECKPOINT-005"):
        save_model(saved, other.config, other.state_dict(), TASK)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(saved)) == ["config.yaml", "model.safetensors"]
    assert [name for name in seen if name.startswith("model")] == ["model.safetensors"]


def test_missing_files_are_refused(saved: Path, tmp_path: Path) -> None:
    refuses(tmp_path / "nothing", "nothing/config.yaml: .*AGFL-CONFIG-003")
    (saved / "model.safetensors").unlink()
    refuses(saved, "model/model.safetensors: .*AGFL-CHECKPOINT-003")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 64])
def test_corrupt_weights_are_refused(saved: Path, content: bytes) -> None:
    (saved / "model.safetensors").write_bytes(content)
    refuses(saved, "model/model.safetensors: .*AGFL-CHECKPOINT-008")


def test_truncated_weights_are_refused(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-1])
    refuses(saved, "model/model.safetensors: .*AGFL-CHECKPOINT-008")


def test_corrupt_configuration_is_refused(saved: Path) -> None:
    description = yaml.safe_load((saved / "config.yaml").read_text())
    description["model"]["layers"][0]["type"] = "attenton"
    (saved / "config.yaml").write_text(yaml.safe_dump(description))
    refuses(
        saved,
        r"model/config.yaml: model.layers.0: unknown 'type' 'attenton' \(did you mean 'attention'\?\).*AGFL-CONFIG-009",
    )
    (saved / "config.yaml").write_text("model: [")
    refuses(saved, "model/config.yaml: .*AGFL-CONFIG-005")


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "embedding.weight": torch.zeros(2, 3)}, path)
    refuses(saved, r"model.safetensors: embedding.weight: .*got \(2, 3\).*AGFL-CHECKPOINT-011")
    save_file({**weights, "extra": torch.zeros(1)}, path)
    refuses(saved, "model.safetensors: extra: .*AGFL-CHECKPOINT-010")
    weights.pop("head.norm.weight")
    save_file(weights, path)
    refuses(saved, "model.safetensors: head.norm.weight: .*AGFL-CHECKPOINT-009")


def test_a_model_comes_back_with_its_tokenizer(tmp_path: Path) -> None:
    model = AutoGenModel({**CONFIG, "vocab_size": 300}, seed=1)
    tokenizer = BPETokenizerConfig(type="bpe", vocab_size=300, merges=((32, 97), (259, 98)))
    save_model(tmp_path, model.config, model.state_dict(), TASK, tokenizer)
    saved = load_model(tmp_path)[1]
    assert saved.tokenizer == tokenizer
    assert saved.tokenizer.build().encode(" abc") == [260, 99]


def test_a_model_of_no_known_task_comes_back(tmp_path: Path) -> None:
    model = AutoGenModel({"dim": 8, "layers": [{"type": "ff"}]}, seed=0)
    save_model(tmp_path, model.config, model.state_dict())
    assert load_model(tmp_path)[1].task is None


def test_a_task_that_is_only_named_has_its_defaults(saved: Path) -> None:
    description = yaml.safe_load((saved / "config.yaml").read_text())
    (saved / "config.yaml").write_text(yaml.safe_dump({**description, "task": "language_modeling"}))
    assert load_model(saved)[1].task == LanguageModelingConfig(type="language_modeling")


def test_a_task_that_the_model_cannot_do_is_refused(saved: Path) -> None:
    model, config = load_model(saved)
    with pytest.raises(ConfigError, match=r"model\.family must be encoder_decoder for task translation, got decoder"):
        save_model(saved, config.model, model.state_dict(), TranslationConfig(type="translation"))


def test_a_tokenizer_that_is_not_the_models_is_refused(saved: Path) -> None:
    model, config = load_model(saved)
    other = BPETokenizerConfig(type="bpe", vocab_size=300, merges=((32, 97),))
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: must be 300 as tokenizer\.vocab_size, got 259.*AGFL-CONFIG-014"
    ):
        save_model(saved, config.model, model.state_dict(), TASK, other)
    description = yaml.safe_load((saved / "config.yaml").read_text())
    for tokenizer, line in [
        ({"type": "bpe", "vocab_size": 300, "merges": []}, "model.vocab_size: .*AGFL-CONFIG-014"),
        ({"type": "bpe", "vocab_size": 300, "merges": [[1, 300]]}, "tokenizer: merges.0: .*AGFL-CONFIG-020"),
        ({"type": "word"}, "tokenizer: unknown 'type' 'word' .*AGFL-CONFIG-009"),
    ]:
        (saved / "config.yaml").write_text(yaml.safe_dump({**description, "tokenizer": tokenizer}))
        refuses(saved, f"model/config.yaml: {line}")
    description["model"]["vocab_size"] = 300
    description["tokenizer"] = {"type": "bpe", "vocab_size": 300}
    (saved / "config.yaml").write_text(yaml.safe_dump(description))
    refuses(saved, "model/config.yaml: tokenizer.merges: .*AGFL-CONFIG-015")


def refuses(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_model_that_another_version_wrote_is_named_as_such(saved: Path) -> None:
    content = yaml.safe_load((saved / "config.yaml").read_text())
    assert content["version"] == VERSION
    (saved / "config.yaml").write_text(yaml.safe_dump({**content, "version": "9.8", "shiny": 1}))
    with pytest.raises(
        CheckpointError,
        match=rf"shiny.*; it was written by agfl 9\.8, and this is version {VERSION} \[AGFL-CONFIG-001\]$",
    ):
        load_model(saved)
    (saved / "config.yaml").write_text(yaml.safe_dump({**content, "version": "9.8"}))
    load_model(saved)
