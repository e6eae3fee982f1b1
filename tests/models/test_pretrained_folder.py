"""What of a pretrained model's folder is used, what is refused in one line, and that nothing in it is ever run."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.tiny_pretrained import write_pretrained

from agfl_models.errors import AgflError, ConfigError, PretrainedError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.model.families import build_model
from agfl_models.validation import validate


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "llama", "llama")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A folder of its own."""
    return shutil.copytree(written, tmp_path / "model")


def config_of(folder: Path | None, **settings: Any) -> HuggingFaceConfig:
    return HuggingFaceConfig(family="huggingface", architecture="causal", folder=folder, **settings)


def refused(config: HuggingFaceConfig) -> str:
    with pytest.raises(AgflError) as caught:
        build_model(config, 0)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__} {caught.value.sentence}"


def change_json(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_fingerprint_is_that_of_a_copy(folder: Path, written: Path) -> None:
    (folder / "README.md").write_text("a model")
    (folder / "generation_config.json").unlink()
    assert PretrainedFolder(folder).fingerprint == PretrainedFolder(written).fingerprint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_the_fingerprint_changes_with_every_file_that_is_read(name: str, folder: Path) -> None:
    before = PretrainedFolder(folder).fingerprint
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert PretrainedFolder(folder).fingerprint != before
    (folder / name).write_bytes(content)
    assert PretrainedFolder(folder).fingerprint == before


def test_a_copy_is_pinned_by_its_fingerprint(folder: Path, written: Path) -> None:
    pinned = config_of(None).pinned(written, "--pretrained")
    assert pinned.folder == written
    assert config_of(written, fingerprint=pinned.fingerprint).pinned(folder, "--pretrained").folder == folder
    change_json(folder / "config.json", rms_norm_eps=1e-5)
    other = PretrainedFolder(folder).fingerprint
    with pytest.raises(ConfigError) as caught:
        pinned.pinned(folder, "--pretrained")
    rule = f"must be a copy of the run's pretrained model, with fingerprint {pinned.fingerprint}"
    assert str(caught.value) == f"--pretrained: {rule}, got {other} [AGFL-CONFIG-027]"
    with pytest.raises(ConfigError, match=r"^model\.folder: .*AGFL-CONFIG-026"):
        pinned.pinned(None, "model.folder")


def test_no_network_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_model(config_of(folder), 0)


class Marker:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(tmp_path / "ran")))
    build_model(config_of(folder), 0)
    (folder / "model.safetensors").unlink()
    assert refused(config_of(folder)) == (
        f"PretrainedError pretrained: {folder}: must hold weights as model.safetensors, "
        "found pytorch_model.bin, whose pickle could run code"
    )
    assert not (tmp_path / "ran").exists()


def test_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    change_json(
        folder / "config.json",
        model_type="unheard_of",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    assert refused(config_of(folder)).startswith(f"PretrainedError pretrained: {folder}: cannot be used: ValueError: ")
    change_json(folder / "config.json", model_type="llama")
    build_model(config_of(folder), 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "no such folder"),
        ("config.json", "must hold config.json, the model's, found none"),
        ("tokenizer.json", "must hold tokenizer.json, its tokenizer's, as AutoTokenizer saves it, found none"),
        ("model.safetensors", "must hold weights as model.safetensors, found none"),
    ],
)
def test_a_folder_must_be_complete(name: str, line: str, folder: Path) -> None:
    shutil.rmtree(folder) if not name else (folder / name).unlink()
    with pytest.raises(
        PretrainedError, match=f"^pretrained: {re.escape(str(folder))}: {re.escape(line)} \\[AGFL-PRETRAINED-"
    ):
        PretrainedFolder(folder)


def test_what_cannot_be_read_is_one_line(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert refused(config_of(folder)).startswith(f"PretrainedError pretrained: {folder}: cannot be used: ")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text('{"model_type": ')
    assert refused(config_of(folder)).startswith(f"PretrainedError pretrained: {folder}: cannot be used: ")


def test_a_weight_that_is_missing_or_misshapen_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    up = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(config_of(folder)) == f"PretrainedError pretrained: {folder}: weights must hold {name}, found none"
    build_model(config_of(folder, num_layers=1), 0)
    save_file({**weights, name: up[1:].clone()}, folder / "model.safetensors", {"format": "pt"})
    line = refused(config_of(folder))
    assert line.startswith(f"PretrainedError pretrained: {folder}: cannot be used: RuntimeError: ")
    assert len(line) < 400


@pytest.mark.parametrize(
    ("kind", "architecture", "line"),
    [
        ("llama", "encoder", "must be causal for a LlamaForCausalLM, got encoder"),
        ("t5", "causal", "must be seq2seq for a T5ForConditionalGeneration, got causal"),
        ("bert", "causal", "must be encoder for a BertModel, got causal"),
        ("bert", "seq2seq", "must be encoder for a BertModel, got seq2seq"),
    ],
)
def test_the_architecture_is_that_of_the_folder(kind: str, architecture: str, line: str, tmp_path: Path) -> None:
    folder = write_pretrained(tmp_path / kind, kind)
    head = {"type": "span"} if architecture == "encoder" else None
    config = validate(
        HuggingFaceConfig,
        {"family": "huggingface", "architecture": architecture, "folder": folder, "head": head},
        "run.yaml",
    )
    assert refused(config) == f"ConfigError model.architecture: {line}"


def test_more_layers_than_there_are_cannot_be_kept(folder: Path) -> None:
    line = "model.num_layers: must be at most 2 for this pretrained model, got 3"
    assert refused(config_of(folder, num_layers=3)) == f"ConfigError {line}"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"architecture": "encoder"}, "head: required with architecture encoder (span or classification), got none"),
        ({"head": {"type": "span"}}, "head: span needs another architecture, got causal"),
        ({"head": {"tied": False}}, "head.tied: follows from the pretrained model and must not be chosen, got false"),
        ({"fingerprint": "ab"}, "fingerprint: String should match pattern '^[0-9a-f]{64}$', got 'ab'"),
        ({"lora": {"targets": []}}, "lora.targets: Tuple should have at least 1 item after validation, not 0, got []"),
        ({"lora": {}}, "lora.targets: required but missing"),
        ({"folders": "x"}, "unknown key 'folders' (did you mean 'folder'?)"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(HuggingFaceConfig, {"family": "huggingface", "architecture": "causal", **settings}, "run.yaml")
    assert caught.value.sentence == f"run.yaml: {line}"


def test_a_missing_extra_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused(config_of(folder)) == (
        "ConfigError model.family: huggingface needs the extra `huggingface` (pip install 'agfl[huggingface]'): "
        "import of transformers halted; None in sys.modules"
    )
