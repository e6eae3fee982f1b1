"""A model with a last position writes up to there, and a prompt past it is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.models.test_generation import EOS, LAYERS, WAYS, config_of, make_model
from tests.tiny_pretrained import write_pretrained
from typer.testing import CliRunner

from agfl_models import AutoGenModel
from agfl_models.cli import app
from agfl_models.errors import ConfigError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.inference import Continuer
from agfl_models.model.families import build_model
from agfl_models.model.generation import BLOCK, generate, stream
from agfl_models.model.sequence_model import SequenceModel

if TYPE_CHECKING:
    from tests.models.conftest import Serve

LAST = 30
NO_END = 19  # a token that this model does not write


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceModel, "max_length", LAST)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("length", [1, 29, 30])
def test_what_is_written_ends_with_the_last_position(way: dict[str, object], length: int, last: None) -> None:
    model, prompt = make_model(), [1] * length
    config = config_of(max_new_tokens=100, **way)
    (ids,) = generate(model, [prompt], config, eos_id=NO_END, generator=torch.Generator().manual_seed(0))
    assert len(ids) <= LAST - length + 1
    exact = config_of(max_new_tokens=LAST - length + 1, **way)
    same = generate(model, [prompt], exact, eos_id=NO_END, generator=torch.Generator().manual_seed(0))
    assert way.get("temperature") or same == [ids], "as if so many had been asked for"


def test_each_prompt_of_a_batch_has_its_own_room(last: None) -> None:
    model, config = make_model(), config_of(max_new_tokens=100)
    prompts = [[1] * 3, [2] * 30, [5] * 17]
    found = generate(model, prompts, config, eos_id=EOS)
    assert found == [generate(model, [prompt], config, eos_id=EOS)[0] for prompt in prompts]


def test_a_prompt_past_the_last_position_is_refused_before_the_first_token(last: None) -> None:
    model, prompt = make_model(), [1] * (LAST + 1)
    rule = rf"^prompt: must be at most {LAST} tokens long .*, got {LAST + 1} .AGFL-CONFIG-113"
    with pytest.raises(ConfigError, match=rule):
        generate(model, [[1], prompt], config_of(), eos_id=EOS)
    with pytest.raises(ConfigError, match=rule):
        next(stream(model, prompt, config_of(), eos_id=EOS))


def test_the_command_prints_nothing_of_a_prompt_that_is_too_long(model_folders: dict[str, Path], last: None) -> None:
    fits = CliRunner().invoke(app, ["generate", str(model_folders["generate"]), "a" * 20])
    assert fits.exit_code == 0
    assert fits.stdout.startswith("a" * 20)
    result = CliRunner().invoke(app, ["generate", str(model_folders["generate"]), "a" * 40])
    assert isinstance(result.exception, ConfigError)
    assert result.stdout == ""


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_server_refuses_it_whole(serve: Serve, last: None, is_streamed: bool) -> None:
    user, client = serve("generate")
    assert isinstance(user, Continuer)
    body = {"stream": is_streamed, "max_tokens": 1000}
    assert client.post("/v1/generate", json={**body, "text": "a" * 20}).status_code == 200
    refused = client.post("/v1/generate", json={**body, "text": "a" * 40})
    assert refused.status_code == 422
    assert refused.json()["error"].startswith(f"prompt: must be at most {LAST} tokens long")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart"])
def test_a_pretrained_model_writes_as_far_as_its_own_positions(tmp_path: Path, kind: str) -> None:
    folder = write_pretrained(tmp_path / kind, kind)
    architecture = "seq2seq" if kind == "bart" else "causal"
    config = HuggingFaceConfig(family="huggingface", architecture=architecture, folder=folder)
    model = build_model(config, 0)
    assert model.max_length == config.max_length == 64
    memory = None
    if kind == "bart":
        with torch.no_grad():
            memory = model.encode(torch.full((1, 4), 7))
    (ids,) = generate(model, [[5, 6, 7]], config_of(max_new_tokens=500), eos_id=-1, memory=memory)
    assert len(ids) == 62, "the last one is written and not read"


@pytest.mark.parametrize("layers", [LAYERS, [{"type": "attention", "window": 50}, {"type": "ff"}]])
def test_a_long_prompt_is_read_in_blocks_as_token_by_token(
    layers: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoGenModel({"vocab_size": 20, "dim": 16, "layers": layers}, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    prompts: list[list[int]] = [
        torch.randint(1, 20, (size,), generator=generator).tolist() for size in (BLOCK, 2 * BLOCK + 40, 3 * BLOCK + 1)
    ]
    read: list[int] = []
    whole: Callable[..., object] = AutoGenModel.read

    def counted(self: AutoGenModel, x: torch.Tensor, state: object) -> object:
        read.append(x.numel())
        return whole(self, x, state)

    monkeypatch.setattr(AutoGenModel, "read", counted)
    alone = [generate(model, [prompt], config_of(), eos_id=EOS)[0] for prompt in prompts]
    assert read == [2 * BLOCK, 3 * BLOCK]
    assert generate(model, prompts[1:], config_of(), eos_id=EOS) == alone[1:]
    monkeypatch.setattr("agfl_models.model.generation.BLOCK", 10**6)
    assert [generate(model, [prompt], config_of(), eos_id=EOS)[0] for prompt in prompts] == alone
